"""Slides of DICOM: a folder or any of its files, by OpenSlide and by wsidicom; several slides in one folder."""

import shutil

import numpy as np
import pytest
from support.dicom_slides import write_dicom_slide

from timm_mvhybrid.data import (
    DataError,
    PatchError,
    Slide,
    SlideSource,
    TilingOptions,
    list_slides,
    open_source,
    source_digest,
)
from timm_mvhybrid.data.dicom import dicom_files, dicom_series, is_dicom
from timm_mvhybrid.data.slide import is_slide_folder

pytest.importorskip("pydicom", reason="pydicom, which writes the slides, is not installed (extra dicom)")

SIZE = (300, 500)


def picture(seed=0):
    """Smooth colours, so that a level says what the larger one says."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / 40 + seed
    channels = [np.sin(x + y), np.sin(x - 2 * y), np.cos(2 * x)]
    return np.rint(127 + 80 * np.stack(channels, axis=-1)).astype(np.uint8)


@pytest.fixture
def slide(tmp_path):
    folder = tmp_path / "case 1"
    folder.mkdir()
    image = picture()
    return folder, write_dicom_slide(folder, [image, image[::2, ::2]]), image


def _missing(path):
    raise ImportError


@pytest.fixture(params=["openslide", "wsidicom"])
def library(request, monkeypatch):
    if request.param == "wsidicom":
        pytest.importorskip("wsidicom", reason="wsidicom is not installed (extra dicom)")
        monkeypatch.setattr("timm_mvhybrid.data.slide._openslide", _missing)
    return request.param


def test_a_folder_and_each_of_its_files_are_the_slide(slide, library):
    folder, files, image = slide
    for path in (folder, *files):
        opened = Slide(path)
        assert opened.dimensions == (500, 300)
        assert opened.level_dimensions == [(500, 300), (250, 150)]
        assert opened.resolution_um_per_px == pytest.approx(0.5)
        patch = np.asarray(opened.read((64, 32), (200, 180), (200, 180)))
        assert np.array_equal(patch, image[32:212, 64:264])
        half = np.asarray(opened.read((64, 32), (200, 180), (100, 90)))
        assert np.array_equal(half, image[::2, ::2][16:106, 32:132])
        beyond = np.asarray(opened.read((450, -20), (100, 100), (100, 100)))
        assert (beyond[:20] == 255).all()
        assert (beyond[:, 50:] == 255).all()
        assert np.array_equal(beyond[20:, :50], image[:80, 450:])
        opened.close()


def test_between_pixels_both_libraries_read_the_same(slide, monkeypatch):
    pytest.importorskip("wsidicom", reason="wsidicom is not installed (extra dicom)")
    folder, _, _ = slide
    first = Slide(folder)
    _ = first.handle
    monkeypatch.setattr("timm_mvhybrid.data.slide._openslide", _missing)
    second = Slide(folder)
    for corner in ((33, 71), (101, 7), (-13, 55)):
        patches = [np.asarray(one.read_level(corner, 1, (60, 70))).astype(int) for one in (first, second)]
        # OpenSlide weights with 7 bits, and its result is rounded
        assert np.abs(patches[0] - patches[1]).max() <= 3
    assert type(first.handle).__module__ != type(second.handle).__module__


def test_two_slides_in_one_folder_are_refused_with_a_file_to_give(slide):
    folder, _, _ = slide
    write_dicom_slide(folder, [picture(1)], name="other")
    assert sorted(map(len, dicom_series(dicom_files(folder)).values())) == [1, 2]
    assert not is_slide_folder(folder)
    with pytest.raises(
        DataError, match=r"case 1: holds 2 slides of DICOM \(series\); give a file of one, such as"
    ):
        Slide(folder)


def test_a_folder_is_a_source_and_its_digest_that_of_its_files(slide, tmp_path):
    folder, files, _ = slide
    tiling = TilingOptions(patch_size_px=64, min_tissue=0)
    source = open_source(folder, tiling=tiling)
    assert isinstance(source, SlideSource)
    assert len(source) == 4 * 7
    before = source_digest(source)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert source_digest(open_source(copy, tiling=tiling)) == before
    (copy / files[1].name).unlink()
    assert source_digest(open_source(copy, tiling=tiling)) != before


def test_a_cohort_takes_each_slide_once(slide, tmp_path):
    folder, files, _ = slide
    others = tmp_path / "mixed"
    others.mkdir()
    several = write_dicom_slide(others, [picture(2), picture(2)[::2, ::2]])
    (single,) = write_dicom_slide(others, [picture(3)], name="single")
    assert [(one.slide_id, one.path) for one in list_slides([folder])] == [("case 1", folder)]
    listed = {one.slide_id: one.path for one in list_slides([others])}
    (series,) = [name for name, members in dicom_series(several).items()]
    assert listed == {series: several[0], "single_0": single}
    assert {one.slide_id for one in list_slides([tmp_path])} == {"case 1"}
    assert [one.path for one in list_slides([f"{folder}/*.dcm"])] == [files[0]]


def test_a_damaged_file_is_named(slide, library):
    folder, files, _ = slide
    for file in files:
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="case 1: "):
        Slide(folder)


def test_what_a_truncated_file_lacks_is_named(slide):
    folder, files, image = slide
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) - 64 * 64 * 3])
    opened = Slide(folder)
    assert np.array_equal(np.asarray(opened.read((0, 0), (64, 64), (64, 64))), image[:64, :64])
    with pytest.raises(PatchError, match=r"case 1: unreadable region at x=448, y=256"):
        opened.read((448, 256), (52, 44), (52, 44))


def test_files_are_known_by_their_content(tmp_path):
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "notes.dcm").write_text("no slide")
    assert dicom_files(tmp_path) == [tmp_path / "IM0001"]
    assert not is_dicom(tmp_path / "missing")
