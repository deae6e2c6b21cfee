"""Which files a slide is made of: a change of any of them is a change of the slide."""

import os

import numpy as np
import pytest
from support.dicom_slides import write_dicom_slide
from support.generated_slides import write_slide

from timm_mvhybrid.data import TilingOptions, open_source, source_digest
from timm_mvhybrid.data.slide_files import slide_files, slide_fingerprint, slide_sha256, slide_stamp
from timm_mvhybrid.runtime.digest import file_fingerprint, file_sha256

IMAGE = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)


def known(path):
    return slide_fingerprint(path), slide_stamp(path), slide_sha256(path)


def change(file, content=None):
    file.write_bytes(file.read_bytes()[:-1] + b"!" if content is None else content)
    # some file systems count in seconds
    os.utime(file, (0, 0))


def assert_depends_on(path, files, others=()):
    assert slide_files(path) == sorted(files)
    for file in others:
        before = known(path)
        change(file)
        assert known(path) == before
    for file in files:
        before = known(path)
        change(file)
        assert not set(known(path)) & set(before)


@pytest.fixture
def series(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom, which writes the slides, is not installed (extra dicom)")
    folder = tmp_path / "dicom"
    folder.mkdir()
    return write_dicom_slide(folder, [IMAGE, IMAGE[::2, ::2]]), write_dicom_slide(
        folder, [IMAGE], name="other"
    )


def test_a_file_of_dicom_stands_for_its_series(series):
    files, others = series
    for path in files:
        assert slide_files(path) == files
    # another slide's files do not count, nor a file that is added for another slide
    before = known(files[1])
    write_dicom_slide(files[0].parent, [IMAGE], name="third")
    assert known(files[1]) == before
    assert_depends_on(files[1], files, others)
    before = known(files[1])
    files[0].unlink()
    assert not set(known(files[1])) & set(before)


def test_patches_of_a_file_of_dicom_are_told_by_all_files(series):
    files, _ = series
    tiling = TilingOptions(patch_size_px=64, min_tissue=0)
    before = source_digest(open_source(files[1], tiling=tiling))
    change(files[0])
    assert source_digest(open_source(files[1], tiling=tiling)) != before


def test_mirax_has_a_folder_of_the_same_name(tmp_path):
    (tmp_path / "case" / "deep").mkdir(parents=True)
    files = [
        tmp_path / "case.mrxs",
        tmp_path / "case" / "Slidedat.ini",
        tmp_path / "case" / "deep" / "Data0000.dat",
    ]
    other = tmp_path / "other.dat"
    for file in (*files, other):
        file.write_bytes(b"content")
    assert_depends_on(files[0], files, [other])


def test_an_index_of_hamamatsu_names_its_files_and_none_elsewhere(tmp_path):
    index = tmp_path / "slides" / "case.vms"
    index.parent.mkdir()
    secret = tmp_path / "secret.jpg"
    files = [index, *(index.parent / name for name in ("case.jpg", "case(1,0).jpg", "case.opt"))]
    for file in (*files, secret, index.parent / "other.jpg"):
        file.write_bytes(b"content")
    lines = [
        "[Virtual Microscope Specimen]",
        "NoLayers=1",
        "ImageFile=case.jpg",
        "ImageFile(1,0)=case(1,0).jpg",
    ]
    index.write_text("\r\n".join([*lines, "OptimisationFile=case.opt", "MapFile=../secret.jpg", ""]))
    assert_depends_on(index, [*files[1:], index], [secret, index.parent / "other.jpg"])


def test_a_folder_is_all_its_files(tmp_path):
    folder = tmp_path / "slide.zarr"
    (folder / "0" / "c").mkdir(parents=True)
    files = [folder / "zarr.json", folder / "0" / "c" / "0"]
    for file in files:
        file.write_bytes(b"content")
    assert_depends_on(folder, files)


def test_a_file_by_itself_is_what_it_was_before(tmp_path):
    path = tmp_path / "a.tif"
    write_slide(path)
    assert slide_files(path) == [path]
    assert slide_fingerprint(path) == file_fingerprint(path)
    assert slide_sha256(path) == file_sha256(path)
    assert slide_stamp(path) == f"{path.stat().st_size} {path.stat().st_mtime_ns}"
    assert slide_stamp(tmp_path / "none.tif") == ""
