"""What names slides → slides with ids: folders, patterns, tables, and ids that collide."""

import pytest

from timm_mvhybrid.data import SlideInput, list_slides
from timm_mvhybrid.runtime.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "in/b.svs",
        "in/a.tif",
        "in/.hidden.svs",
        "in/notes.txt",
        "in/c_patches.h5",
        "deep/x/d.ndpi",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def ids(*inputs):
    return [slide.slide_id for slide in list_slides(inputs)]


def test_files_folders_and_patterns_name_slides(folder):
    assert ids("in/b.svs") == ["b"]
    assert ids("in") == ["a", "b", "c"]
    assert ids("deep/**/*.ndpi", "in/a.tif") == ["d", "a"]
    # given twice it is one slide
    assert ids("in/b.svs", "in", "in/*.svs") == ["b", "a", "c"]


def test_a_table_names_slides_from_its_own_folder(folder):
    (folder / "in" / "table.csv").write_text(
        "slide,path,um_per_px,coords,slide_id\n"
        "b.svs,,0.25,,\n"
        "case 1.2,a.tif,,c_patches.h5,\n"
        "../deep/x/d.ndpi,,,,renamed\n"
    )
    place = folder / "in"
    assert list_slides([place / "table.csv"]) == [
        SlideInput(slide_id="b", path=place / "b.svs", um_per_px=0.25),
        SlideInput(slide_id="case 1.2", path=place / "a.tif", coords=place / "c_patches.h5"),
        SlideInput(slide_id="renamed", path=place / "../deep/x/d.ndpi"),
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("slide\n", "names no slide"),
        ("name\nb.svs\n", "lacks the column 'slide'"),
        (
            "slide,mpp\nb.svs,0.5\n",
            "has the column 'mpp'; known are slide, path, um_per_px, coords, slide_id",
        ),
        ("slide\nz.svs\n", r"slide 'z.svs': .*z\.svs does not exist"),
        ("slide,coords\nb.svs,z.h5\n", r"slide 'b.svs': .*z\.h5 does not exist"),
        ("slide,um_per_px\nb.svs,20x\n", "um_per_px is '20x'; it must be above 0"),
        ("slide,um_per_px\nb.svs,-1\n", "um_per_px is '-1'"),
        ("slide,slide_id\nb.svs,../b\n", r"the id '\.\./b' of .* cannot name a file"),
        ("slide,slide_id\nb.svs,a\na.tif,\n", r"b\.svs .* and .*a\.tif .* would both become a\.h5"),
        ("slide,um_per_px\nb.svs,0.5\nb.svs,0.25\n", r"would both become b\.h5"),
    ],
)
def test_a_table_that_is_wrong_is_named_with_its_slide(folder, table, message):
    file = folder / "in" / "table.csv"
    file.write_text(table)
    with pytest.raises(DataError, match=message) as caught:
        list_slides([file])
    assert str(caught.value).count("table.csv") >= 1


def test_ids_that_collide_are_refused(folder):
    (folder / "in" / "A.svs").touch()
    with pytest.raises(
        DataError, match=r"A\.svs \(in\) and in/a\.tif \(in\) would both become a\.h5; give one"
    ):
        list_slides(["in"])
    (folder / "deep" / "b.svs").touch()
    with pytest.raises(DataError, match=r"in/b\.svs and deep/b\.svs would both become b\.h5"):
        list_slides(["in/b.svs", "deep/b.svs"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "no slide given"),
        (("deep",), r"deep: holds no slide .* give a pattern such as 'deep/\*\*/\*\.svs'"),
        (("in/*.czi",), r"in/\*\.czi: no file matches"),
        (("nowhere.svs",), r"nowhere\.svs: there is no such file or folder"),
        (("in/.hidden.svs",), r"the id '\.hidden' .* cannot name a file"),
    ],
)
def test_what_names_no_slide_is_refused(folder, given, message):
    with pytest.raises(DataError, match=message):
        list_slides(given)
