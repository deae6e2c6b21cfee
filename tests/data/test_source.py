import multiprocessing
import subprocess
import sys

import h5py
import numpy as np
import pytest
from support.generated_patches import (
    clam_attributes,
    random_patches,
    write_clam_patches,
    write_coordinates,
    write_hest,
    write_images,
)
from support.generated_slides import write_slide

from timm_mvhybrid.data import (
    CoordinateH5Source,
    DataError,
    FolderSource,
    PatchH5Source,
    SlideSource,
    TilingOptions,
    open_source,
)


@pytest.fixture
def inputs(tmp_path):
    write_slide(tmp_path / "slide.tif")
    write_coordinates(tmp_path / "slide.h5", [[256, 256], [512, 256]], attributes=clam_attributes(128, 0))
    write_hest(tmp_path / "hest.h5", random_patches(3))
    write_clam_patches(tmp_path / "clam.h5", random_patches(3))
    write_images(tmp_path / "images", 3)
    return tmp_path


KINDS = [
    ("slide.tif", SlideSource),
    ("slide.h5", CoordinateH5Source),
    ("hest.h5", PatchH5Source),
    ("clam.h5", PatchH5Source),
    ("images", FolderSource),
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_kinds_are_told_apart(inputs, name, kind):
    assert type(open_source(inputs / name)) is kind


def test_h5_is_told_by_content_not_by_name(inputs):
    (inputs / "hest.h5").rename(inputs / "patches.data")
    assert type(open_source(inputs / "patches.data")) is PatchH5Source


def test_options_reach_slide_and_coordinates(inputs):
    tiling = TilingOptions(patch_size_px=128, slide_resolution_um_per_px=0.5)
    assert len(open_source(inputs / "slide.tif", tiling=tiling)) == 8
    (inputs / "other").mkdir()
    (inputs / "slide.h5").rename(inputs / "other" / "x.h5")
    source = open_source(inputs / "other" / "x.h5", slide=inputs / "slide.tif", tiling=tiling)
    assert source.resolution_um_per_px == 0.5


def _read(connection, source):
    holder = getattr(source, "slide", None) or getattr(source, "_file", None)
    inherited = holder and holder._handle
    patch = np.asarray(source[1])
    # folders open each file anew, so they inherit nothing
    connection.send((patch, inherited is None or holder._handle is not inherited))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_sources_survive_a_fork_with_open_handles(inputs, name, kind):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    source = open_source(inputs / name)
    expected = np.asarray(source[1])
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_read, args=(sender, source))
    process.start()
    assert receiver.poll(20)
    patch, opened_anew = receiver.recv()
    np.testing.assert_array_equal(patch, expected)
    assert opened_anew
    process.join()
    np.testing.assert_array_equal(np.asarray(source[1]), expected)


def test_missing_input(tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere\.svs: No such file.*accepted are a slide .*folder.*'img'.*'coords'"
    ):
        open_source(tmp_path / "nowhere.svs")


@pytest.mark.parametrize("name", ["notes.txt", "notes.svs"])
def test_file_of_another_kind(tmp_path, name):
    (tmp_path / name).write_text("no slide")
    with pytest.raises(
        DataError, match=rf"{name}: cannot be opened as a slide .*OpenSlide.*tiffslide.*accepted are"
    ):
        open_source(tmp_path / name)


def test_damaged_h5(inputs):
    content = (inputs / "hest.h5").read_bytes()
    (inputs / "hest.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"hest\.h5: cannot be opened as an h5 file"):
        open_source(inputs / "hest.h5")
    (inputs / "hest.h5").write_bytes(b"")
    with pytest.raises(DataError, match=r"hest\.h5: not an h5 file, or damaged"):
        open_source(inputs / "hest.h5")


@pytest.mark.parametrize("names", [(), ("other",), ("coords", "embeddings"), ("coords", "features")])
def test_h5_without_patches(tmp_path, names):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in names:
            file[name] = np.zeros((3, 2))
    with pytest.raises(DataError, match=r"x\.h5: holds the datasets .*accepted are"):
        open_source(tmp_path / "x.h5")


def test_importing_loads_no_slide_library():
    code = (
        "import sys, timm_mvhybrid.data, timm_mvhybrid.evaluate\n"
        "heavy = {'openslide', 'tiffslide', 'tifffile', 'scanpy', 'lightly'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
