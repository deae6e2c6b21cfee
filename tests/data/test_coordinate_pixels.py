"""Patches of TRIDENT's and CLAM's coordinate files: the pixels that these tools read, which OpenSlide gives here."""

import warnings

import h5py
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from support.generated_patches import clam_attributes, trident_attributes, write_coordinates
from support.generated_slides import write_odd_pyramid, write_slide

from timm_mvhybrid.data import CoordinateH5Source, DataError, Slide, open_samples, open_source
from timm_mvhybrid.data.coordinate_h5 import patch_reading
from timm_mvhybrid.data.h5_file import H5File

# inside, inside at an odd corner, over the right, over the bottom, over both
CORNERS = [[256, 256], [333, 101], [1101, 256], [512, 801], [1190, 890]]
# patch size, magnification of slide and patches, by hand: level 1 of the slide has a downsample of 2.0019
TRIDENT = {
    "as scanned": (128, 20, 20, 0, 128),
    "half, a level of its own": (128, 20, 10, 1, 128),
    "12 ×, 427 px where patch_size_level0 says 426": (256, 20, 12, 0, 427),
    "15 ×, 341 px and so 170.5 of level 1": (128, 40, 15, 1, 170),
    "7 ×, 366 px and so 183 of level 1": (128, 20, 7, 1, 183),
    "finer than the slide": (128, 20, 40, 0, 64),
}
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.fixture
def odd_slide(tmp_path):
    write_odd_pyramid(tmp_path / "slide.svs")
    return tmp_path / "slide.svs"


def theirs(slide, corner, level, size_level_px, size_px, padding=BLACK):
    """What `read_region(...).convert("RGB").resize(...)` gives, or the same on another ground."""
    region = openslide.OpenSlide(slide).read_region(corner, level, (size_level_px, size_level_px))
    patch = np.where(np.asarray(region)[..., 3:] > 0, np.asarray(region.convert("RGB")), np.uint8(padding))
    if padding == BLACK:
        np.testing.assert_array_equal(patch, np.asarray(region.convert("RGB")))
    return np.asarray(Image.fromarray(patch).resize((size_px, size_px)))


def missing(path):
    raise ImportError


def opened(slide, attributes, coords=CORNERS, **options):
    path = slide.with_suffix(".h5")
    write_coordinates(path, coords, attributes=attributes)
    return CoordinateH5Source(path, **options)


@pytest.mark.parametrize("case", TRIDENT)
def test_trident(odd_slide, case):
    size_px, magnification, target, level, size_level_px = TRIDENT[case]
    source = opened(odd_slide, trident_attributes(size_px, magnification, target))
    for index, corner in enumerate(CORNERS):
        expected = theirs(odd_slide, corner, level, size_level_px, size_px)
        np.testing.assert_array_equal(np.asarray(source[index]), expected, err_msg=str(corner))


def test_trident_on_ome_tiff(tmp_path):
    """OpenSlide, and so TRIDENT, knows nothing of its smaller levels, which hold other pixels here."""
    slide = tmp_path / "slide.tif"
    image = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    with tifffile.TiffWriter(slide, ome=True) as writer:
        writer.write(image, subifds=1, tile=(128, 128), photometric="rgb", metadata={"axes": "YXS"})
        writer.write(255 - image[::2, ::2], subfiletype=1, tile=(128, 128), photometric="rgb")
    assert len(Slide(slide).level_dimensions) == 2
    source = opened(slide, trident_attributes(128, 20, 10))
    for index, corner in enumerate(CORNERS):
        np.testing.assert_array_equal(np.asarray(source[index]), theirs(slide, corner, 0, 256, 128))


@pytest.mark.parametrize("level", [0, 1])
def test_clam(odd_slide, level):
    source = opened(odd_slide, clam_attributes(96, level))
    for index, corner in enumerate(CORNERS):
        np.testing.assert_array_equal(np.asarray(source[index]), theirs(odd_slide, corner, level, 96, 96))


def test_tiffslide_gives_the_same_pixels(odd_slide, monkeypatch):
    # as where OpenSlide is not installed
    monkeypatch.setattr("timm_mvhybrid.data.slide._openslide", missing)
    source = opened(odd_slide, clam_attributes(96, 1))
    for index, corner in enumerate(CORNERS):
        region = openslide.OpenSlide(odd_slide).read_region(corner, 1, (96, 96))
        difference = np.abs(np.asarray(source[index]).astype(int) - np.asarray(region.convert("RGB")))
        # OpenSlide weights the two neighbours of an axis with 7 bits
        assert difference[np.asarray(region)[..., 3] == 255].max() <= 3


def test_12_times_writes_426_and_reads_427():
    assert trident_attributes(256, 20, 12)["patch_size_level0"] == 426


@pytest.mark.parametrize(
    ("attributes", "option", "expected"),
    [
        (trident_attributes(128, 20, 20), "auto", BLACK),
        (clam_attributes(128, 0), "auto", BLACK),
        (trident_attributes(128, 20, 20), "white", WHITE),
        (clam_attributes(128, 0), "white", WHITE),
        # in TRIDENT's layout, and not by TRIDENT
        ({"patch_size": 128, "level0_magnification": 20, "target_magnification": 20}, "auto", WHITE),
        ({"patch_size": 128, "level0_magnification": 20, "target_magnification": 20}, "black", BLACK),
        ({"patch_size": 128, "patch_level": 0}, "auto", WHITE),
        ({"patch_size": 128, "patch_size_level0": 128}, "auto", WHITE),
    ],
)
def test_beyond_the_edge(tmp_path, attributes, option, expected):
    pixels = write_slide(tmp_path / "slide.tif", tissue=(0, 0, 1024, 768))
    source = opened(tmp_path / "slide.tif", attributes, [[256, 256], [960, 700]], edge=option)
    patch = np.asarray(source[1])
    np.testing.assert_array_equal(patch[:68, :64], pixels[700:, 960:])
    assert (patch[68:] == expected).all()
    assert (patch[:, 64:] == expected).all()
    assert source.num_over_edge == 1
    assert source.edge == ("black" if expected == BLACK else "white")
    np.testing.assert_array_equal(np.asarray(source[0]), pixels[256:384, 256:384])


@pytest.mark.parametrize("case", TRIDENT)
def test_patches_over_the_edge_are_counted_and_left_out(odd_slide, case):
    size_px, magnification, target, level, size_level_px = TRIDENT[case]
    attributes = trident_attributes(size_px, magnification, target)
    coords = [[x, y] for y in range(0, 907, 150) for x in range(0, 1203, 150)]
    handle = openslide.OpenSlide(odd_slide)
    size = (size_level_px, size_level_px)
    whole = [
        corner
        for corner in coords
        if (np.asarray(handle.read_region(corner, level, size))[..., 3] == 255).all()
    ]
    source = opened(odd_slide, attributes, coords, edge="skip")
    assert source.coords.tolist() == whole
    assert source.num_over_edge == len(coords) - len(whole) > 0
    np.testing.assert_array_equal(
        np.asarray(source[len(whole) - 1]), theirs(odd_slide, whole[-1], level, size_level_px, size_px)
    )
    kept = opened(odd_slide, attributes, coords)
    assert len(kept) == len(coords)
    assert kept.num_over_edge == source.num_over_edge


def test_edges_that_cannot_be_had(tmp_path):
    write_slide(tmp_path / "slide.tif")
    slide = tmp_path / "slide.tif"
    with pytest.raises(DataError, match="`edge` is 'grey'; choose from auto, black, white, skip"):
        opened(slide, clam_attributes(128, 0), edge="grey")
    with pytest.raises(
        DataError, match=r"slide\.h5: .*neither the magnifications .* `edge='white'` or `edge='skip'`"
    ):
        opened(slide, {"patch_size": 128, "patch_size_level0": 256}, [[256, 256]], edge="black")
    with pytest.raises(DataError, match=r"slide\.h5: all 1 patches extend over the edge of .*slide\.tif"):
        opened(slide, clam_attributes(128, 0), [[1000, 0]], edge="skip")


def test_the_option_reaches_the_source(tmp_path):
    write_slide(tmp_path / "slide.tif")
    write_coordinates(
        tmp_path / "slide.h5", [[256, 256], [1000, 256]], attributes=trident_attributes(128, 20, 20)
    )
    assert open_source(tmp_path / "slide.h5").edge == "black"
    assert open_source(tmp_path / "slide.h5", edge="white").edge == "white"
    as_they_do, without = (open_samples(tmp_path / "slide.h5", edge=edge) for edge in ("auto", "skip"))
    assert (len(as_they_do), len(without)) == (2, 1)
    # other pixels are other data for a resumed run
    white = open_samples(tmp_path / "slide.h5", edge="white")
    assert as_they_do.fingerprint() != white.fingerprint()


def test_a_level_that_trident_takes_for_a_finer_one_is_named(tmp_path):
    """Of 1.998 TRIDENT keeps 1, so it reads twice as many pixels of that level; it is followed, aloud."""
    attributes = trident_attributes(256, 40, 20)
    with h5py.File(tmp_path / "slide.h5", "w"):
        pass
    with pytest.warns(
        UserWarning, match=r"level 1 .* 1\.9980, patches show 1023 px .* not the 512 px of 20 ×"
    ):
        reading = patch_reading(H5File(tmp_path / "slide.h5"), attributes, "slide.svs", [1.0, 1.998])
    assert (reading.level, reading.size_level_px, reading.size_px) == (1, 512, 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reading = patch_reading(H5File(tmp_path / "slide.h5"), attributes, "slide.svs", [1.0, 2.002])
    assert (reading.level, reading.size_level_px, reading.size_px) == (1, 256, 256)
