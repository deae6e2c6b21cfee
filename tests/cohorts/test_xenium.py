import json
import re
import shutil

import h5py
import numpy as np
import pytest
from support.generated_slides import write_slide
from support.limited_disks import refusing
from support.measured_cohorts import write_manifest
from support.xenium_bundles import (
    CONTROLS,
    GENES,
    PIXEL_SIZE_UM,
    SIZE_PX,
    scattered,
    turned,
    um_per_px,
    write_bundle,
    write_matrix,
    write_panel,
)

from timm_mvhybrid.cohorts import placed_transcripts, transcripts
from timm_mvhybrid.cohorts.counts import read_counts
from timm_mvhybrid.cohorts.image_alignment import ImageAlignment
from timm_mvhybrid.cohorts.placed_transcripts import write_placed_transcripts
from timm_mvhybrid.cohorts.prepare import prepare_sample
from timm_mvhybrid.cohorts.spot_sample import PatchOptions
from timm_mvhybrid.cohorts.transcripts import read_transcripts
from timm_mvhybrid.cohorts.xenium import XeniumFolder, read_gene_panel, read_pixel_size
from timm_mvhybrid.finetune.cohort_entry import open_entries
from timm_mvhybrid.finetune.measured import read_cohort
from timm_mvhybrid.runtime.errors import DataError, OutputError, ParameterError

pytest.importorskip("pyarrow")

MATRIX = turned()
UM_PER_PX = um_per_px(MATRIX)
PATCHES = PatchOptions(patch_size_px=16, resolution_um_per_px=2 * UM_PER_PX)  # 32 px of the image


def make(tmp_path, *, matrix=MATRIX, slide_um_per_px=UM_PER_PX, data=None, tissue=None, columns=None):
    write_slide(tmp_path / "he.tif", um_per_px=slide_um_per_px, size=SIZE_PX, tissue=tissue, num_levels=1)
    write_bundle(tmp_path / "outs", *(data or scattered()), matrix, columns)
    write_matrix(tmp_path / "he_imagealignment.csv", matrix)
    return tmp_path / "outs"


def source(tmp_path, **options):
    options = {"alignment": tmp_path / "he_imagealignment.csv", **options}
    return XeniumFolder(folder=tmp_path / "outs", slide=tmp_path / "he.tif", **options)


def histograms(places, features, qv, genes, side, min_qv=20.0):
    """Counts in squares by NumPy's histogram, (rows · columns, genes)."""
    edges = [np.arange(int(length // side) + 1) * side for length in SIZE_PX]
    tables = []
    for gene in genes:
        kept = places[(features == gene) & (qv >= min_qv)]
        tables.append(np.histogram2d(kept[:, 1], kept[:, 0], edges[::-1])[0].ravel())
    return np.stack(tables, axis=1)


def test_counts_are_those_of_the_squares_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(transcripts, "_BATCH_ROWS", 300)
    make(tmp_path)
    places, features, qv = scattered()
    sample = source(tmp_path, min_transcripts=8).read("S", PATCHES)
    assert sample.genes == tuple(sorted(GENES))
    assert sample.um_per_px == pytest.approx(UM_PER_PX)
    assert (sample.spot_shape, sample.spot_size_um) == ("square", pytest.approx(32 * UM_PER_PX))
    wanted = histograms(places, features, qv, sample.genes, 32)
    kept = wanted.sum(axis=1) >= 8
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(sample.counts.toarray(), wanted[kept])
    rows, columns = np.divmod(np.flatnonzero(kept), SIZE_PX[0] // 32)
    np.testing.assert_allclose(sample.spatial, np.stack([columns, rows], axis=1) * 32.0 + 16)
    assert sample.barcodes == tuple(f"{x}x{y}" for x, y in zip(columns, rows, strict=True))

    # that the example tells a permutation from its inverse
    met = list(dict.fromkeys(features[np.isin(features, GENES)]))
    ranks = np.array([sample.genes.index(name) for name in met])
    assert ranks.tolist() != np.argsort(ranks).tolist()

    is_gene = np.isin(features, sample.genes)
    left_out = sample.notes["left_out"]
    assert left_out["num_controls"] == {
        "negcontrol": (features == CONTROLS[0]).sum(),
        "unassigned": (features == CONTROLS[1]).sum(),
    }
    assert left_out["num_low_quality"] == (is_gene & (qv < 20)).sum()
    assert left_out["num_in_sparse_squares"] == wanted[~kept].sum()
    num_transcripts = sample.notes["num_transcripts"]
    assert num_transcripts == (is_gene & (qv >= 20)).sum()
    in_places = left_out["num_in_no_square"] + left_out["num_in_sparse_squares"]
    assert sample.counts.sum() + in_places == num_transcripts


def test_overlapping_squares(tmp_path):
    make(tmp_path)
    places, features, qv = scattered()
    sample = source(tmp_path, min_transcripts=1, stride_px=8).read("S", PATCHES)
    kept = np.isin(features, sample.genes) & (qv >= 20)
    for centre, total in zip(sample.spatial, sample.counts.sum(axis=1), strict=True):
        inside = (np.abs(places[kept] - centre) < 16).all(axis=1)
        assert inside.sum() == total


def test_a_landmark_is_under_its_transcripts_and_in_no_other_direction(tmp_path):
    """The one dark square of the image is where the one gene is, whatever the matrix turns, stretches and shifts."""
    rng = np.random.default_rng(1)
    landmark = rng.uniform((448, 96), (480, 128), (400, 2))
    elsewhere = rng.uniform((0, 0), SIZE_PX, (3000, 2))
    features = np.array(["LANDMARK"] * 400 + ["OTHER"] * 3000)
    data = (np.concatenate([landmark, elsewhere]), features, np.full(3400, 30.0))
    make(tmp_path, data=data, tissue=(448, 96, 480, 128))
    prepare_sample(
        source(tmp_path), tmp_path / "he.tif", tmp_path / "T", sample_id="S", study="A", patches=PATCHES
    )
    counts = read_counts(tmp_path / "T" / "adata" / "S.h5ad")
    with h5py.File(tmp_path / "T" / "patches" / "S.h5") as file:
        patches, coords = file["img"][:], file["coords"][:]
        barcodes = [name.decode() for name in file["barcode"][:, 0]]
    by_spot = counts.values[[counts.barcodes.index(name) for name in barcodes]].toarray()
    of_landmark = by_spot[:, counts.genes.index("LANDMARK")]
    dark = patches.mean(axis=(1, 2, 3)) < 200
    assert dark.sum() == 1
    assert of_landmark.tolist() == np.where(dark, 400, 0).tolist()
    assert coords[dark].tolist() == [[448, 96]]

    # that the example tells directions apart
    for wrong in (np.linalg.inv(MATRIX), np.vstack([np.c_[MATRIX[:2, :2].T, MATRIX[:2, 2]], [0, 0, 1]])):
        um = (MATRIX @ np.r_[464, 112, 1])[:2] * PIXEL_SIZE_UM
        place = ImageAlignment(matrix=wrong, morphology_um_per_px=PIXEL_SIZE_UM).from_um(*um)
        assert np.hypot(place[0] - 464, place[1] - 112) > 100


def test_matrix_of_the_other_direction_is_told(tmp_path):
    make(tmp_path)
    write_matrix(tmp_path / "he_imagealignment.csv", np.linalg.inv(MATRIX))
    with pytest.raises(
        DataError,
        match=r"he_imagealignment\.csv: places all 2,\d+ transcripts \(x .* to .*, y .* to .* px\) outside of .*he\.tif "
        r"\(600 × 400 px\); the inverse matrix would place 100% of them inside",
    ):
        source(tmp_path).read("S", PATCHES)
    write_matrix(tmp_path / "he_imagealignment.csv", turned(shift=(90000, 0)))
    with pytest.raises(DataError, match=r"outside of .*; give the matrix of this very image"):
        source(tmp_path).read("S", PATCHES)


def test_size_of_a_px_that_image_and_matrix_disagree_on(tmp_path):
    make(tmp_path, slide_um_per_px=1.04 * UM_PER_PX)
    arguments = (source(tmp_path), tmp_path / "he.tif", tmp_path / "T")
    options = {"sample_id": "S", "study": "A", "patches": PATCHES}
    stated, derived = f"{1.04 * UM_PER_PX:.4g}", f"{UM_PER_PX:.4g}"
    with pytest.raises(
        DataError,
        match=rf"states {stated} µm/px, and of sample 'S' by .*he_imagealignment\.csv and the 0\.2125 µm/px of "
        rf"experiment\.xenium a px is {derived} µm, 4% apart",
    ):
        prepare_sample(*arguments, **options)
    make(tmp_path, slide_um_per_px=1.02 * UM_PER_PX)
    assert prepare_sample(*arguments, **options).um_per_px == pytest.approx(UM_PER_PX)


def test_image_with_the_pixels_of_the_morphology_image(tmp_path):
    make(tmp_path, matrix=np.eye(3), slide_um_per_px=None)
    sample = source(tmp_path, alignment=None, aligned=True).read("S", PATCHES)
    assert sample.um_per_px == PIXEL_SIZE_UM
    side = 16 * PATCHES.resolution_um_per_px / PIXEL_SIZE_UM
    assert sample.counts.sum() > 1000
    assert sample.spatial.min() == pytest.approx(side / 2)


def test_transcripts_feed_the_tokens_of_fine_tuning(tmp_path, monkeypatch):
    """Counts of a patch's 16 × 16 tokens add up to what was counted in its square, gene by gene."""
    monkeypatch.setattr(transcripts, "_BATCH_ROWS", 300)
    make(tmp_path)
    found, task = source(tmp_path), tmp_path / "T"
    prepared = prepare_sample(
        found, tmp_path / "he.tif", task, sample_id="S", study="A", patient="P", patches=PATCHES
    )
    file = task / "transcripts" / "S.parquet"
    assert write_placed_transcripts(found, file) == prepared.notes["num_transcripts"]
    places, features, qv = scattered()
    kept = np.isin(features, GENES) & (qv >= 20)
    table = read_transcripts(file)
    np.testing.assert_allclose(np.stack([table.x_px, table.y_px], axis=1), places[kept], rtol=0, atol=1e-9)
    assert [table.genes[gene] for gene in table.gene] == features[kept].tolist()

    manifest = write_manifest(tmp_path / "m.json", {"path": "T", "platform": "transcripts"})
    (measured,) = read_cohort(open_entries([manifest])[0], grid=16, min_qv=20)
    counts = read_counts(task / "adata" / "S.h5ad")
    with h5py.File(task / "patches" / "S.h5") as patches:
        order = [counts.barcodes.index(name.decode()) for name in patches["barcode"][:, 0]]
    np.testing.assert_array_equal(measured.counts.toarray(), counts.values[order].toarray())
    assert measured.tokens.shape == (len(order), 256 * 5)
    assert measured.area_um2 == pytest.approx((32 * UM_PER_PX) ** 2)

    before = file.stat().st_mtime_ns
    write_placed_transcripts(found, file)
    assert file.stat().st_mtime_ns == before
    write_placed_transcripts(source(tmp_path, min_qv=30), file)
    assert len(read_transcripts(file)) == (kept & (qv >= 30)).sum()
    assert [path.name for path in file.parent.iterdir() if not path.name.endswith(".lock")] == ["S.parquet"]


def test_features_that_the_table_calls_no_genes(tmp_path):
    features = scattered()[1]
    make(tmp_path, columns={"is_gene": features != "CD4"})
    sample = source(tmp_path).read("S", PATCHES)
    assert sample.genes == ("ACTA2", "EPCAM", "KRT8", "MS4A1")
    assert sample.notes["left_out"]["num_controls"]["no_gene"] == (features == "CD4").sum()


def test_genes_of_the_panel_without_a_transcript_have_counts_of_0(tmp_path):
    make(tmp_path)
    without = source(tmp_path, min_transcripts=8).read("S", PATCHES)
    panel = [("gene", name) for name in ("AAA1", "CD4", "EPCAM", "ZZZ9")] + [("negative_control_probe", "N1")]
    write_panel(tmp_path / "outs", panel)
    sample = source(tmp_path, min_transcripts=8).read("S", PATCHES)
    assert sample.genes == ("AAA1", *sorted(GENES), "ZZZ9")
    assert sample.notes["num_genes_without_transcript"] == 2
    assert [file.name for file in sample.files][2] == "gene_panel.json"
    counts = sample.counts.toarray()
    assert (counts[:, [0, -1]] == 0).all()
    np.testing.assert_array_equal(counts[:, 1:-1], without.counts.toarray())


@pytest.mark.parametrize(
    "content",
    ["[1]", "{}", '{"payload": {"targets": [3]}}', '{"payload": {"targets": []}}', '{"payload": 1}', "{"],
)
def test_panels_that_are_none(tmp_path, content):
    file = tmp_path / "gene_panel.json"
    file.write_text(content)
    problem = "cannot be read as JSON" if content == "{" else r"lists no genes .* or move it away"
    with pytest.raises(DataError, match=rf"^{re.escape(str(file))}: {problem}"):
        read_gene_panel(file)


def test_what_is_missing_is_named(tmp_path):
    folder = make(tmp_path)
    with pytest.raises(
        DataError,
        match=r"he\.tif: where it lies .*, because there is no file \.\.\.imagealignment\.csv in .*outs; give .* by "
        r"`alignment`, or `aligned=True` if",
    ):
        source(tmp_path, alignment=None).files  # noqa: B018
    for name in ("x_he_imagealignment.csv", "x_if_imagealignment.csv"):
        shutil.copy(tmp_path / "he_imagealignment.csv", folder / name)
    with pytest.raises(
        DataError,
        match=r"outs has x_he_imagealignment\.csv, x_if_imagealignment\.csv, of which images is not said",
    ):
        source(tmp_path, alignment=None).files  # noqa: B018
    with pytest.raises(DataError, match=r"`aligned` says that the image needs no matrix"):
        source(tmp_path, aligned=True).files  # noqa: B018
    with pytest.raises(ParameterError, match="`min_transcripts` must be at least 1, not 0"):
        source(tmp_path, min_transcripts=0)
    with pytest.raises(DataError, match=r"the fullest square holds \d+ transcripts; lower `min_transcripts`"):
        source(tmp_path, alignment=folder / "x_he_imagealignment.csv", min_transcripts=500).read("S", PATCHES)
    (folder / "transcripts.parquet").rename(folder / "t.parquet")
    with pytest.raises(DataError, match=r"transcripts\.parquet: missing, which holds the transcripts"):
        source(tmp_path).files  # noqa: B018
    (folder / "experiment.xenium").unlink()
    with pytest.raises(DataError, match=r"experiment\.xenium: missing, which states the pixel size"):
        source(tmp_path).files  # noqa: B018
    with pytest.raises(DataError, match=r"no such folder; give the folder that Xenium wrote"):
        XeniumFolder(folder=tmp_path / "no", slide=tmp_path / "he.tif", aligned=True).files  # noqa: B018


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (
            {"x_location": None},
            r"lacks the column 'x_location'; it has .*; give transcripts\.parquet as Xenium",
        ),
        ({"qv": None}, "lacks the column 'qv'"),
        ({"feature_name": None}, "lacks the column 'feature_name'"),
        ({"y_location": np.full(3000, np.inf)}, "x_location or y_location is infinite"),
        ({"y_location": np.full(3000, np.nan)}, "no transcript counts .* without a place"),
    ],
)
def test_tables_that_are_none(tmp_path, columns, problem):
    make(tmp_path, columns=columns)
    with pytest.raises(DataError, match=rf"transcripts\.parquet: {problem}"):
        source(tmp_path).read("S", PATCHES)


def test_truncated_table(tmp_path):
    file = make(tmp_path) / "transcripts.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"transcripts\.parquet: cannot be read as a parquet file"):
        source(tmp_path).read("S", PATCHES)
    with pytest.raises(DataError, match="cannot be read as a parquet file"):
        write_placed_transcripts(source(tmp_path), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "'pixel_size' is missing; it must be µm"),
        (json.dumps({"pixel_size": "0.2125"}), "'pixel_size' is '0.2125'"),
        (json.dumps({"pixel_size": True}), "'pixel_size' is True"),
        (json.dumps({"pixel_size": 0}), "'pixel_size' is 0"),
        (
            json.dumps({"pixel_size": 212.5, "analysis_sw_version": "x-1"}),
            r"'pixel_size' is 212.5 \(written by x-1\)",
        ),
        ('{"pixel_size": NaN}', "'pixel_size' is nan"),
    ],
)
def test_pixel_sizes_that_are_none(tmp_path, content, problem):
    file = tmp_path / "experiment.xenium"
    file.write_text(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(file))}: {problem}"):
        read_pixel_size(file)


def test_most_transcripts_outside_of_the_image_are_warned_of(tmp_path):
    make(tmp_path)
    write_matrix(
        tmp_path / "he_imagealignment.csv", turned() @ np.array([[1, 0, -420], [0, 1, 0], [0, 0, 1]])
    )
    with pytest.warns(
        UserWarning, match=r"places only \d+ of 2,\d+ transcripts inside of .*he\.tif \(600 × 400 px\)"
    ):
        source(tmp_path).read("S", PATCHES)


def test_size_that_the_user_settles_is_that_of_the_squares(tmp_path):
    make(tmp_path)
    sample = source(tmp_path, um_per_px=UM_PER_PX / 2).read("S", PATCHES)
    assert sample.spatial.min() == pytest.approx(32)
    assert sample.um_per_px == UM_PER_PX / 2


def test_matrix_that_is_named_after_the_image_or_the_only_one(tmp_path):
    folder = make(tmp_path)
    matrix = (tmp_path / "he_imagealignment.csv").rename(tmp_path / "x_he_imagealignment.csv")
    image = (tmp_path / "he.tif").rename(tmp_path / "x_he_image.ome.tif")
    found = XeniumFolder(folder=folder, slide=image)
    assert found.files[-1] == matrix
    # others in the folder are of other images
    other = shutil.copy(matrix, folder / "x_if_imagealignment.csv")
    assert found.files[-1] == matrix
    matrix.rename(folder / matrix.name)
    assert found.files[-1] == folder / matrix.name
    (folder / matrix.name).unlink()
    assert found.files[-1] == other
    sample = found.read("S", PATCHES)
    assert (sample.notes["alignment"], sample.um_per_px) == (
        "x_if_imagealignment.csv",
        pytest.approx(UM_PER_PX),
    )


@pytest.mark.parametrize("num_bytes", [0, 1000, 40000])
def test_transcripts_that_the_disk_does_not_take_leave_nothing(tmp_path, monkeypatch, num_bytes):
    make(tmp_path)
    monkeypatch.setattr(placed_transcripts, "OutputFile", refusing(num_bytes))
    with pytest.raises(OutputError, match=r"S\.parquet: cannot be written \(No space left on device"):
        write_placed_transcripts(source(tmp_path), tmp_path / "T" / "S.parquet")
    assert not [
        path for path in (tmp_path / "T").iterdir() if "parquet" in path.name and path.suffix != ".lock"
    ]
