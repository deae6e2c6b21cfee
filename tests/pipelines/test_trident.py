"""TRIDENT, from its command line: tissue, coordinates and features of ours, against ``embed`` on its coordinates."""

import warnings

import h5py
import numpy as np
import pytest
from PIL import Image
from pyramids import write_pyramid

from timm_mvhybrid.data import open_source
from timm_mvhybrid.evaluate import embed, load_backbone

NAME = "mvhybrid_small_patch16_256"
# one batch, for a patch's features depend in their last bit on how many are multiplied at a time
BATCH = 64
WITHOUT_TISSUE_MODEL = ["--segmenter", "otsu", "--gpus", "-1", "--max_workers", "0", "--batch_size", BATCH]

pytestmark = [pytest.mark.usefixtures("clone"), pytest.mark.filterwarnings("ignore:.*as TRIDENT reads level")]


@pytest.fixture(scope="module")
def slides(slide_image, tmp_path_factory):
    """One level at 20 ×; two at 40 ×, of which the second's downsample is 2.0005 or 1.9990."""
    folder = tmp_path_factory.mktemp("slides")
    write_pyramid(folder / "plain.svs", slide_image.crop((600, 800, 1400, 1900)), 20)
    write_pyramid(folder / "down.svs", slide_image.crop((400, 400, 1880, 2383)), 40, "down")
    write_pyramid(folder / "up.svs", slide_image.crop((400, 400, 1879, 2383)), 40, "up")
    return folder


@pytest.fixture(scope="module")
def run(hub, example, slides, tmp_path_factory):
    """Runs all of TRIDENT's steps on the three slides, and returns the folder of coordinates and features."""
    job = tmp_path_factory.mktemp("job")

    def run(mag, patch_size, *more):
        hub(NAME)
        options = ["--wsi_dir", slides, "--job_dir", job, "--mag", mag, "--patch_size", patch_size]
        encoder = ["--patch_encoder", NAME, "--dump_patches", *more]
        example("trident_slides.py", "--task", "all", *options, *WITHOUT_TISSUE_MODEL, *encoder)
        return job / f"{mag}x_{patch_size}px_0px_overlap"

    return run


def own_features(coordinates, slides, output, **options):
    """Ours on TRIDENT's coordinates: (coords, features, attributes)."""
    edge = options.pop("edge", "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        source = open_source(coordinates, slide=slides, edge=edge)
    backbone = load_backbone(NAME, pretrained=True)
    embed(source, backbone, output, batch_size=BATCH, device="cpu", overwrite=True, **options)
    with h5py.File(output) as file:
        return file["coords"][:], file["embeddings"][:], dict(file.attrs)


# 12 × of 20 ×: 427 px where patch_size_level0 is 426. 15 × of 40 ×: 170.5 px of level 1. Patches hang over in each
@pytest.mark.parametrize(("mag", "patch_size"), [(20, 256), (12, 256), (15, 128)])
def test_coordinates_give_the_same_pixels_and_features(run, slides, tmp_path, record, mag, patch_size):
    # as `embed` takes them; TRIDENT alone would enlarge those of 128 px
    folder = run(mag, patch_size, "--patch_encoder_img_size", patch_size)
    num_over_edge = 0
    for name in ("plain", "down", "up"):
        coordinates = folder / "patches" / f"{name}_patches.h5"
        source = open_source(coordinates, slide=slides)
        pictures = sorted((folder / "patch_images" / name).glob("*.png"))
        assert len(pictures) == len(source) > 0
        for index, picture in enumerate(pictures):
            np.testing.assert_array_equal(
                np.asarray(source[index]), np.asarray(Image.open(picture)), picture.name
            )
        coords, ours, attributes = own_features(coordinates, slides, tmp_path / "own.h5")
        with h5py.File(folder / f"features_{NAME}" / f"{name}.h5") as file:
            theirs = file["features"][:]
            np.testing.assert_array_equal(coords, file["coords"][:])
        # float32 with sums of up to 1536 products, in one order or another
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        figures = dict(patches=len(ours), over_edge=int(attributes["num_over_edge"]))
        record(
            f"{name}, {mag}x",
            bits_equal=bool((ours == theirs).all()),
            difference=float(difference),
            **figures,
        )
        assert np.ptp(theirs, axis=0).max() > 1e-3
        assert difference <= 1536 * np.finfo(np.float32).eps
        assert attributes["edge"] == "black"
        num_over_edge += attributes["num_over_edge"]
    assert num_over_edge > 0


def test_patches_over_the_edge_are_the_ones_that_differ_by_option(run, slides, tmp_path):
    coordinates = run(20, 256) / "patches" / "down_patches.h5"
    coords, black, attributes = own_features(coordinates, slides, tmp_path / "own.h5")
    _, white, _ = own_features(coordinates, slides, tmp_path / "own.h5", edge="white")
    kept, _, skipped = own_features(coordinates, slides, tmp_path / "own.h5", edge="skip")
    moved = np.abs(black - white).max(axis=1) > 1e-3 * np.abs(black).max()
    assert moved.sum() == attributes["num_over_edge"] == skipped["num_over_edge"] > 0
    np.testing.assert_array_equal(kept, coords[~moved])


def test_a_size_of_image_is_taken(run, slides, tmp_path):
    """``--patch_encoder_img_size`` is refused for encoders that are not on TRIDENT's list."""
    folder = run(10, 256, "--patch_encoder_img_size", 224)
    with h5py.File(folder / f"features_{NAME}" / "plain.h5") as file:
        theirs = file["features"][:]
    assert theirs.shape[1] == 384
    # resized by Pillow here and there, after another rounding
    _, ours, _ = own_features(
        folder / "patches" / "plain_patches.h5", slides, tmp_path / "own.h5", input_size=224
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
