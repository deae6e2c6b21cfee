"""CLAM, by its own scripts: coordinates and features of ours, against ``embed`` on its coordinates."""

import subprocess
import sys

import h5py
import numpy as np
import openslide
import pytest
import torch
from pyramids import write_pyramid

from timm_mvhybrid.cohorts.bags import read_bags
from timm_mvhybrid.data import open_source
from timm_mvhybrid.evaluate import embed, load_backbone

NAME = "mvhybrid_small_patch16_256"
SLIDES = ("down", "up")
# CLAM's own; one batch, for a patch's features depend in their last bit on how many are multiplied at a time
BATCH = 256


@pytest.fixture(scope="module")
def slides(slide_image, tmp_path_factory):
    """Two levels each; the downsample of the second is 2.0005 or 1.9990."""
    folder = tmp_path_factory.mktemp("slides")
    write_pyramid(folder / "down.svs", slide_image.crop((400, 400, 1880, 2383)), 40, "down")
    write_pyramid(folder / "up.svs", slide_image.crop((400, 400, 1879, 2383)), 40, "up")
    return folder


@pytest.fixture(scope="module", params=[0, 1], ids="level {}".format)
def run(request, hub, clone, example, slides, tmp_path_factory):
    """CLAM's two steps at one level: (level, folder of coordinates, folder of features)."""
    hub(NAME)
    folder = tmp_path_factory.mktemp("clam")
    command = [sys.executable, "create_patches_fp.py", "--source", slides, "--save_dir", folder / "patches"]
    # the default looks for tissue larger than the region
    command += ["--patch_size", "256", "--patch_level", str(request.param), "--preset", "bwh_biopsy.csv"]
    done = subprocess.run(
        [*map(str, command), "--seg", "--patch"], cwd=clone, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    example("clam_features.sh", slides, folder / "patches", folder / "features", ".svs", cwd=clone)
    return request.param, folder / "patches" / "patches", folder / "features"


@pytest.mark.parametrize("name", SLIDES)
def test_coordinates_give_the_same_pixels_and_features(run, slides, name, tmp_path, record):
    level, patches, features = run
    source = open_source(patches / f"{name}.h5", slide=slides)
    handle = openslide.OpenSlide(slides / f"{name}.svs")
    for index, corner in enumerate(source.coords.tolist()):
        theirs = handle.read_region(corner, level, (256, 256)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(source[index]), np.asarray(theirs), str(corner))
    summary = embed(
        source, load_backbone(NAME, pretrained=True), tmp_path / "own.h5", batch_size=BATCH, device="cpu"
    )
    with h5py.File(tmp_path / "own.h5") as own, h5py.File(features / "h5_files" / f"{name}.h5") as file:
        ours, theirs = own["embeddings"][:], file["features"][:]
        np.testing.assert_array_equal(own["coords"][:], file["coords"][:])
    np.testing.assert_array_equal(torch.load(features / "pt_files" / f"{name}.pt").numpy(), theirs)
    # float32 with sums of up to 1536 products, in one order or another
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    record(
        f"{name}, level {level}",
        bits_equal=bool((ours == theirs).all()),
        difference=float(difference),
        patches=summary.num_patches,
        over_edge=summary.num_over_edge,
    )
    assert np.ptp(theirs, axis=0).max() > 1e-3
    assert difference <= 1536 * np.finfo(np.float32).eps
    assert (summary.edge, summary.num_over_edge > 0) == ("black", True)


def test_its_folder_of_features_is_a_folder_of_bags(run):
    _, _, features = run
    bags, record = read_bags(features, SLIDES)
    assert record.label == "features"
    assert [bag.shape[1] for bag in bags] == [384, 384]
