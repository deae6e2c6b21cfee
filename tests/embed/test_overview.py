"""The page of a folder of embedded slides: rows, areas, colours of one basis, pictures; and what a browser shows of it."""

import json
import os

import h5py
import numpy as np
import pytest
from PIL import Image
from support import chromium
from support.dicom_slides import write_dicom_slide
from support.generated_slides import write_slide

from timm_mvhybrid.data import DataError, TilingOptions, open_source
from timm_mvhybrid.embed import overview_page, overview_rows
from timm_mvhybrid.embed.overview_page import write_overview
from timm_mvhybrid.embed.overview_rows import OverviewRow, busy_seconds, covered_area, find_slides
from timm_mvhybrid.embed.slide_cohort import RecordLog, SlideRecord
from timm_mvhybrid.evaluate import EvaluationError, embed, load_backbone
from timm_mvhybrid.runtime.errors import ParameterError

sklearn = pytest.importorskip("sklearn.decomposition")
from timm_mvhybrid.embed.feature_colours import fit_colours  # noqa: E402

TIFF_MM2 = 512 * 256 * 0.25e-6
"""Area of the rectangle of tissue that ``write_slide`` draws, at 0.5 µm/px."""


def write_features(file, features, coords=None, **attributes):
    with h5py.File(file, "w") as stored:
        stored["embeddings"] = np.asarray(features, np.float32)
        if coords is None:
            coords = 512 * np.stack(np.divmod(np.arange(len(features)), 8), 1)
        stored["coords"] = coords
        stored.attrs.update(
            {
                "model": "m",
                "weights_sha256": "a" * 64,
                "patch_size_px": 256,
                "patch_size_level0": 512,
                "resolution_um_per_px": 0.5,
                **attributes,
            }
        )
    return file


def features_of(seed, num=64, dim=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)) * np.array([9, 5, 3, *[0.1] * (dim - 3)])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two slides at hand, one that is gone, one without a record, one that failed, one damaged, one whose file is gone."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "out").mkdir()
    (folder / "slides").mkdir()
    log = RecordLog(folder / "out")
    backbone = load_backbone("test_vit12")
    for number, name in enumerate(["a", "b #1", "gone", "alone"]):
        slide = folder / "slides" / f"{name}.tif"
        write_slide(slide)
        source = open_source(slide, tiling=TilingOptions(patch_size_px=64))
        summary = embed(source, backbone, folder / "out" / f"{name}.h5")
        source.close()
        assert summary.num_patches == 32
        if name != "alone":
            log.append(
                SlideRecord(
                    slide_id=name, path=str(slide), state="done", tiles=32, seconds=4.0, file=f"{name}.h5",
                    finished=f"2026-01-01T00:00:{10 + 2 * number}+00:00",
                )
            )  # fmt: skip
    (folder / "slides" / "gone.tif").unlink()
    (folder / "out" / "damaged.h5").write_bytes(b"no h5")
    problem = "<b>f.svs</b>: no usable resolution; give it with `slide_resolution_um_per_px`"
    log.append(SlideRecord(slide_id="f", path="/f.svs", state="failed", attempts=3, error=problem))
    log.append(SlideRecord(slide_id="lost", path="/lost.svs", state="done", tiles=3, file="lost.h5"))
    return folder


@pytest.fixture(scope="module")
def overview(cohort):
    return write_overview(cohort / "out", cohort / "page", num_workers=2)


def test_every_slide_has_a_row_and_what_is_wrong_is_said_with_a_remedy(overview):
    rows = {row.slide_id: row for row in overview.rows}
    assert list(rows) == sorted(rows)
    states = {name: row.state for name, row in rows.items()}
    assert states == {
        "a": "done", "alone": "done", "b #1": "done", "damaged": "unreadable", "f": "failed", "gone": "done", "lost": "missing",
    }  # fmt: skip
    assert rows["damaged"].problem.endswith("remove the file, and embed the slide again")
    assert rows["lost"].problem == "lost.h5 is gone; embed the slide again"
    assert (rows["f"].attempts, rows["alone"].attempts) == (3, None)
    assert (rows["a"].tiles, rows["a"].tiles_per_second, rows["alone"].tiles_per_second) == (32, 8, None)


def test_areas_are_those_of_tissue_and_tiles(overview):
    rows = {row.slide_id: row for row in overview.rows}
    # the thumbnail has every pixel of so small a slide, and 32 tiles of 64 px cover the tissue exactly
    assert rows["a"].tissue_mm2 == pytest.approx(TIFF_MM2, rel=1e-12)
    assert rows["a"].tiled_mm2 == pytest.approx(TIFF_MM2, rel=1e-12)
    assert rows["gone"].tissue_mm2 is None
    assert rows["gone"].tiled_mm2 == pytest.approx(TIFF_MM2, rel=1e-12)


def test_the_cohort_is_summed(overview):
    summary = overview.summary()
    assert {name: summary[name] for name in ("slides", "done", "failed", "missing", "unreadable", "tiles")} == {
        "slides": 7, "done": 4, "failed": 1, "missing": 1, "unreadable": 1, "tiles": 128,
    }  # fmt: skip
    # 96 tiles in 8 s: three slides of 4 s each, begun 2 s apart; the one without a time does not count
    assert summary["tiles_per_second"] == 12
    # of the two that are at hand
    assert summary["tissue_mm2"] == pytest.approx(2 * TIFF_MM2)
    numbers = json.loads((overview.page.parent / "overview.json").read_text())
    assert numbers["summary"] == summary
    assert numbers["colours"]["num_rows"] == 128


def test_pictures_show_tiles_and_colours_where_they_lie(cohort, overview):
    rows = {row.slide_id: row for row in overview.rows}
    folder = overview.page.parent
    with Image.open(folder / rows["a"].picture) as image:
        # 1,024 × 768 px, shrunk to 384: tissue from (256, 256) to (768, 512)
        assert image.size == (384, 288)
        slide = np.asarray(image.convert("RGB")).astype(int)
    assert (slide[:80] > 245).all()
    assert slide[100:185, 105:280, 0].mean() < 175  # 200 in the slide, and tinted green
    with Image.open(folder / rows["gone"].picture) as image:
        alone = np.asarray(image.convert("RGB")).astype(int)
    assert (alone[:80] > 245).all()
    assert np.abs(alone[140, 200] - [191, 219, 206]).max() <= 12  # a quarter of green on white
    with Image.open(folder / rows["a"].components) as image:
        coloured = np.asarray(image)
    with h5py.File(cohort / "out" / "a.h5") as stored:
        features, coords = stored["embeddings"][()], stored["coords"][()]
    for (x, y), colour in zip(coords, overview.basis.colours(features), strict=True):
        assert coloured[int(y * 0.375) + 12, int(x * 0.375) + 12].tolist() == [*colour.tolist(), 255]
    assert (coloured[:95, :, 3] == 0).all()
    # alike slides have alike colours
    with Image.open(folder / rows["b #1"].components) as image:
        np.testing.assert_array_equal(np.asarray(image), coloured)


def test_what_was_drawn_of_the_same_file_is_kept(cohort, overview, monkeypatch):
    rows = {row.slide_id: row for row in overview.rows}
    drawn = []

    def draw(path, patches, output, size_px):
        drawn.append(path.name)

    monkeypatch.setattr(overview_page, "draw_slide", draw)
    again = write_overview(cohort / "out", cohort / "page")
    assert drawn == []
    assert {row.slide_id: row for row in again.rows} == rows
    write_overview(cohort / "out", cohort / "page", picture_size_px=100)
    # "alone" has its slide in another folder than its file, and no record of it
    assert sorted(drawn) == ["a.tif", "b #1.tif"]
    write_overview(cohort / "out", cohort / "page", picture_size_px=100, slides=cohort / "slides")
    assert sorted(drawn) == ["a.tif", "alone.tif", "b #1.tif"]


def test_a_slide_that_cannot_be_read_has_its_tiles_and_says_why(tmp_path):
    write_features(tmp_path / "a.h5", features_of(0), slide="a.svs")
    (tmp_path / "a.svs").write_bytes(b"no slide")
    (row,) = write_overview(tmp_path).rows
    assert row.state == "done"
    assert "no picture: " in row.problem
    assert "a.svs: cannot be opened as a slide" in row.problem
    assert (tmp_path / "overview" / row.picture).is_file()


def test_features_of_other_weights_have_no_colours_and_damaged_ones_no_part(tmp_path):
    for name in "abc":
        write_features(tmp_path / f"{name}.h5", features_of(ord(name)))
    write_features(tmp_path / "other.h5", features_of(0), weights_sha256="b" * 64)
    broken = features_of(1)
    broken[5] = np.nan
    write_features(tmp_path / "nan.h5", broken)
    overview = write_overview(tmp_path)
    rows = {row.slide_id: row for row in overview.rows}
    assert [name for name, row in rows.items() if row.components] == list("abc")
    assert rows["nan"].state == "unreadable"
    assert "patch 5 holds NaN" in rows["nan"].problem
    assert any("1 of 5 slides have other weights" in note for note in overview.notes)
    assert overview.basis.num_rows == 3 * 64


def test_images_without_places_have_a_row(tmp_path):
    write_features(tmp_path / "a.h5", features_of(0))
    with h5py.File(tmp_path / "a.h5", "a") as stored:
        del stored["coords"]
    overview = write_overview(tmp_path)
    assert (overview.rows[0].tiles, overview.rows[0].picture, overview.basis) == (64, "", None)


def test_files_of_earlier_versions_are_drawn(tmp_path):
    write_features(tmp_path / "a.h5", features_of(0))
    with h5py.File(tmp_path / "a.h5", "a") as stored:
        del stored.attrs["patch_size_level0"]
    (row,) = write_overview(tmp_path).rows
    assert row.tiled_mm2 is None
    with Image.open(tmp_path / "overview" / row.components) as image:
        # 8 × 8 tiles that touch, and nothing else
        assert np.asarray(image)[..., 3].min() == 255


def test_what_cannot_be_shown_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        write_overview(tmp_path / "none")
    with pytest.raises(DataError, match="holds no embedded slides"):
        write_overview(tmp_path)
    write_features(tmp_path / "a.h5", features_of(0))
    with pytest.raises(ParameterError, match="`picture_size_px` must be at least 16"):
        write_overview(tmp_path, picture_size_px=1)
    with pytest.raises(DataError, match="no such folder"):
        write_overview(tmp_path, slides=tmp_path / "none")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("mine")
    with pytest.raises(
        EvaluationError, match=r"index\.html: exists and is another page; choose another `output`"
    ):
        write_overview(tmp_path, tmp_path / "page")
    assert os.listdir(tmp_path / "page") == ["index.html"]


@pytest.mark.parametrize("most_cells", [50_000_000, 10])
def test_covered_area_counts_overlaps_once(monkeypatch, most_cells):
    monkeypatch.setattr(overview_rows, "_MOST_CELLS", most_cells)
    # on multiples of a sixteenth of the side both ways are exact
    corners = np.random.default_rng(0).integers(0, 40, (60, 2)) * 2
    drawn = np.zeros((120, 120), bool)
    for x, y in corners:
        drawn[y : y + 32, x : x + 32] = True
    assert covered_area(corners, 32.0) == drawn.sum()
    assert covered_area(corners[:1], 32.0) == 32 * 32


def test_time_at_which_nothing_was_done_does_not_count():
    def row(finished, seconds, tiles=1):
        return OverviewRow(slide_id="a", state="done", finished=finished, seconds=seconds, tiles=tiles)

    rows = [
        row("2026-01-01T00:00:10Z", 4),
        row("2026-01-01T00:00:12+00:00", 4),
        row("2026-01-02T00:00:00Z", 5),
    ]
    assert busy_seconds(rows) == 6 + 5
    assert busy_seconds([OverviewRow(slide_id="a", state="done", tiles=3)]) is None


def test_the_basis_is_that_of_principal_components(tmp_path):
    parts = [features_of(seed, num=50, dim=8) for seed in range(3)]
    files = [write_features(tmp_path / f"{index}.h5", part) for index, part in enumerate(parts)]
    basis = fit_colours(files)
    together = np.concatenate([np.asarray(part, np.float32) for part in parts]).astype(np.float64)
    expected = sklearn.PCA(3, svd_solver="full").fit(together)
    np.testing.assert_allclose(np.abs(np.sum(basis.components * expected.components_, axis=1)), 1, atol=1e-10)
    np.testing.assert_allclose(basis.explained, expected.explained_variance_ratio_, rtol=1e-10)
    assert basis.num_rows == 150
    again = fit_colours(files)
    for name in ("mean", "components", "low", "high"):
        np.testing.assert_array_equal(getattr(again, name), getattr(basis, name))
    colours = basis.colours(together.astype(np.float32))
    assert colours.dtype == np.uint8
    # the percentiles, of which 1 % lie below and above
    assert (colours.min(0) == 0).all()
    assert (colours.max(0) == 255).all()


def test_the_sample_is_bounded_and_spread(tmp_path):
    # rows hold their own number in the first column
    for name in "ab":
        write_features(tmp_path / f"{name}.h5", np.arange(1000)[:, None] * np.array([1.0, 0, 0, 0]))
    basis = fit_colours([tmp_path / "a.h5", tmp_path / "b.h5"], most_rows=160)
    assert basis.num_rows == 160
    # blocks begin at whole rows, which moves each by less than one
    assert abs(basis.mean[0] - 499.5) < 1
    np.testing.assert_allclose(np.abs(basis.components[0]), [1, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(basis.explained, [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize(("num", "dim"), [(1, 5), (2, 5), (10, 2), (3, 1)])
def test_few_rows_and_narrow_features_have_colours(tmp_path, num, dim):
    features = np.random.default_rng(0).normal(size=(num, dim)).astype(np.float32)
    basis = fit_colours([write_features(tmp_path / "a.h5", features)])
    colours = basis.colours(features)
    assert colours.shape == (num, 3)
    # a component that there is not is a middle grey
    assert (colours[:, min(num, dim) :] == 128).all()


def test_more_rows_than_one_fit_takes(tmp_path):
    features = features_of(0, num=2 * 4096 + 2, dim=5)
    basis = fit_colours([write_features(tmp_path / "a.h5", features)])
    assert basis.num_rows == len(features)
    np.testing.assert_allclose(np.abs(basis.components[:, :3]).max(axis=1), 1, atol=0.05)


def test_slides_are_found_by_their_names(tmp_path):
    write_features(tmp_path / "a.h5", features_of(0), slide="other.svs")
    write_features(tmp_path / "b.h5", features_of(0))
    (tmp_path / "b.svs").write_bytes(b"")
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "other.svs").write_bytes(b"")
    assert [found.slide for found in find_slides(tmp_path)] == [None, tmp_path / "b.svs"]
    found = find_slides(tmp_path, tmp_path / "slides")
    assert [each.slide for each in found] == [tmp_path / "slides" / "other.svs", tmp_path / "b.svs"]


def test_folders_that_are_slides_are_found_by_their_names(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom, which writes the slides, is not installed (extra dicom)")
    write_features(tmp_path / "one.h5", features_of(0), slide="case 1.5")
    write_features(tmp_path / "two.h5", features_of(0))
    write_features(tmp_path / "three.h5", features_of(0), slide="gone.dcm")
    slides = tmp_path / "slides"
    for folder in ("case 1.5", "two.zarr"):
        (slides / folder).mkdir(parents=True)
    write_dicom_slide(slides / "case 1.5", [np.zeros((64, 64, 3), np.uint8)])
    (slides / "two.zarr" / ".zgroup").write_text("{}")
    # an export beside the features is no slide
    (tmp_path / "three.zarr").mkdir()
    (tmp_path / "three.zarr" / ".zgroup").write_text("{}")
    found = {each.row.slide_id: each.slide for each in find_slides(tmp_path, slides)}
    assert found == {"one": slides / "case 1.5", "two": slides / "two.zarr", "three": None}


@pytest.mark.skipif(chromium.BROWSER is None, reason=chromium.MISSING)
def test_a_browser_shows_sorts_filters_and_loads_what_is_in_view(tmp_path):
    for index in range(300):
        write_features(tmp_path / f"S{index:03}.h5", features_of(index, num=1 + index))
    log = RecordLog(tmp_path)
    log.append(SlideRecord(slide_id="<b>x", path="/x", state="failed", attempts=2, error="<i>no</i> & why"))
    page = write_overview(tmp_path, picture_size_px=32).page
    script = """
    const frame = document.querySelector(".slide-table .scroll"), table = document.getElementById("table-slides");
    const names = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].innerText);
    const pictures = () => [...table.querySelectorAll("img")];
    const loaded = () => pictures().filter((one) => one.complete && one.naturalWidth > 0).length;
    // those in view are inserted at once, and then read
    await Promise.all(pictures().map((one) => one.decode()));
    const head = (title) => [...table.tHead.querySelectorAll("button")].find((one) => one.innerText === title);
    const result = { rows: names().length, first: names()[0], inserted: pictures().length, loaded: loaded() };
    result.buttons = [...table.tHead.querySelectorAll("button")].map((one) => one.innerText);
    head("Tiles").click(); result.most = names().slice(0, 2);
    result.seen = table.tBodies[0].rows[0].querySelectorAll("img").length;
    head("Tiles").click(); result.fewest = names().slice(0, 2);
    const search = document.getElementById("slide-search"), state = document.getElementById("slide-state");
    search.value = "s29"; search.dispatchEvent(new Event("input")); result.found = names().sort();
    result.count = document.getElementById("slide-count").textContent;
    search.value = ""; state.value = "failed"; state.dispatchEvent(new Event("change")); result.failed = names();
    result.problem = document.querySelector("#table-problems tbody tr").cells[3].innerText;
    """
    found, console = chromium.probe(page, page.parent / "profile", script)
    assert console == []
    assert found["rows"] == 301
    assert found["first"] == "<b>x"
    assert 4 <= found["inserted"] <= 60
    assert found["loaded"] == found["inserted"]
    assert found["buttons"][:3] == ["Slide", "State", "Remark"]
    assert found["most"] == ["S299", "S298"]
    assert found["seen"] == 2
    assert found["fewest"] == ["<b>x", "S000"]
    assert found["found"] == [f"S{index}" for index in range(290, 300)]
    assert found["count"] == "10 of 301 slides"
    assert found["failed"] == ["<b>x"]
    assert found["problem"] == "<i>no</i> & why"


@pytest.mark.skipif(chromium.BROWSER is None, reason=chromium.MISSING)
def test_the_screenshot_shows_the_colours(cohort, overview):
    write_overview(cohort / "out", cohort / "page")
    picture = cohort / "page.png"
    _, console = chromium.run(overview.page, cohort / "profile", f"--screenshot={picture}")
    assert console == []
    with Image.open(picture) as image:
        shown = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    with h5py.File(cohort / "out" / "a.h5") as stored:
        wanted = overview.basis.colours(stored["embeddings"][()]).astype(int)
    # each colour of a tile is on the page, where browsers shrink pictures smoothly
    assert all((np.abs(shown - colour).max(axis=1) <= 3).sum() > 3 for colour in wanted)
