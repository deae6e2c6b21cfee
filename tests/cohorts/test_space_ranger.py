"""Visium: the right counts under the right tissue, whatever version of Space Ranger wrote them, and files that are wrong."""

import gzip

import anndata
import h5py
import numpy as np
import pytest
import scanpy
from PIL import Image
from support import space_ranger_folders as folders
from support.space_ranger_folders import MARKER, RED, UM_PER_PX, visium

from timm_mvhybrid.cohorts import PatchOptions, VisiumFolder, prepare_sample
from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.cohorts.tenx_matrix import open_matrix
from timm_mvhybrid.data import PatchH5Source
from timm_mvhybrid.runtime.errors import DataError

# 112 µm, as by default, and few px
PATCHES = PatchOptions(patch_size_px=28, resolution_um_per_px=4.0)
GENES = (MARKER, "TWICE", "NA", "ENSG05")


def prepare(folder, task, **options):
    options = {"sample_id": "S", "study": "ours", "patches": PATCHES, **options}
    slide = options.pop("slide", folder.image)
    return prepare_sample(VisiumFolder(folder=folder.outs), slide, task, **options)


def merged(counts):
    """Counts of the genes: the two features of one symbol together, the antibody left out."""
    return np.column_stack([counts[:, 0], counts[:, 1] + counts[:, 3], counts[:, 2], counts[:, 5]])


@pytest.mark.parametrize(
    ("positions", "matrix"),
    [
        ("tissue_positions_list.csv", "filtered_feature_bc_matrix.h5"),
        ("tissue_positions.csv", "filtered_feature_bc_matrix"),
        ("tissue_positions.parquet", "raw_feature_bc_matrix.h5"),
    ],
)
def test_the_right_counts_are_under_the_right_tissue(tmp_path, positions, matrix):
    folder = visium(tmp_path, positions=positions, matrix=matrix)
    prepared = prepare(folder, tmp_path / "T")
    assert prepared.um_per_px == pytest.approx(UM_PER_PX, rel=1e-6)
    assert prepared.notes["rotation_degrees"] == pytest.approx(3.0)
    assert prepared.notes["num_spots_outside_tissue"] == (9 if matrix.startswith("raw") else 0)
    sample = read_sample(open_task(tmp_path / "T"), "S")
    kept = folder.table[folder.table["in_tissue"] == 1]
    assert sample.barcodes == kept["barcode"].tolist()
    assert sample.genes == list(GENES)
    np.testing.assert_array_equal(sample.counts.toarray(), merged(folder.counts[kept.index]))
    np.testing.assert_allclose(sample.spatial, kept[["pxl_col_in_fullres", "pxl_row_in_fullres"]])
    marked = sample.counts[:, 0].toarray().ravel() > 0
    assert 5 < marked.sum() < len(marked) / 2
    source = PatchH5Source(sample.patches)
    middles = np.array([source[index][13:15, 13:15].mean(axis=(0, 1)) for index in range(len(source))])
    np.testing.assert_array_equal(np.abs(middles - RED).max(axis=1) < 40, marked)
    assert source.resolution_um_per_px == pytest.approx(4.0)
    np.testing.assert_array_equal(source.coords, np.round(sample.spatial - 112 / UM_PER_PX / 2))


def test_readers_agree_with_scanpy(tmp_path):
    folder = visium(tmp_path)
    folders.write_matrix(folder.outs / "mtx", folder, slice(None))
    for path in (folder.outs / "filtered_feature_bc_matrix.h5", folder.outs / "mtx"):
        matrix = open_matrix(path)
        (chunk,) = matrix.chunks()
        if path.is_dir():
            theirs = scanpy.read_10x_mtx(path, var_names="gene_ids", gex_only=False)
        else:
            with pytest.warns(UserWarning, match="not unique"):
                theirs = scanpy.read_10x_h5(path, gex_only=False)
        assert [name.decode() for name in chunk.barcodes] == theirs.obs_names.tolist()
        np.testing.assert_array_equal(chunk.values.toarray(), theirs.X.toarray())
        # scanpy reads the gene NA of Matrix Market as a missing value
        assert matrix.features.merged == {"TWICE": 2}
        assert matrix.features.dropped == {"Antibody Capture": 1}
        assert matrix.features.genes == GENES
        assert matrix.features.gene_ids == ("ENSG01", "ENSG02|ENSG04", "ENSG03", "ENSG05")


def test_what_was_decided_is_recorded(tmp_path):
    prepared = prepare(visium(tmp_path), tmp_path / "T")
    notes = prepared.notes
    assert notes["merged_genes"] == {"TWICE": 2}
    assert notes["dropped_features"] == {"Antibody Capture": 1}
    assert notes["matrix"] == "filtered_feature_bc_matrix.h5"
    data = anndata.read_h5ad(tmp_path / "T" / "adata" / "S.h5ad")
    assert data.var["gene_ids"].tolist() == ["ENSG01", "ENSG02|ENSG04", "ENSG03", "ENSG05"]
    assert set(data.obs) == {"array_row", "array_col"}


def test_the_size_of_a_px_is_that_of_the_spots(tmp_path):
    folder = visium(tmp_path)
    close = folders.write_image(tmp_path / "close.tif", um_per_px=UM_PER_PX * 1.02)
    prepared = prepare(folder, tmp_path / "T", slide=close)
    assert prepared.um_per_px == pytest.approx(UM_PER_PX)
    assert prepared.stated_um_per_px == pytest.approx(UM_PER_PX * 1.02, rel=1e-3)
    far = folders.write_image(tmp_path / "far.tif", um_per_px=UM_PER_PX * 1.05)
    with pytest.raises(
        DataError, match=r"states 2\.625 µm/px.* is 2\.5 µm.*`slide_resolution_um_per_px=2\.5`"
    ):
        prepare(folder, tmp_path / "T", slide=far, sample_id="S2")
    settled = prepare(folder, tmp_path / "T", slide=far, sample_id="S2", slide_resolution_um_per_px=2.6)
    assert settled.um_per_px == 2.6


def test_an_image_that_is_not_the_one(tmp_path):
    folder = visium(tmp_path)
    small = folder.outs / "spatial" / "tissue_hires_image.png"
    with pytest.raises(
        DataError, match=r"lies outside the image of 175 × 125 px.*not tissue_hires_image\.png"
    ):
        prepare(folder, tmp_path / "T", slide=small)
    Image.open(folder.image).resize((1400, 1000)).save(tmp_path / "large.png")
    with pytest.warns(UserWarning, match="has 1400 × 1000 px, .* had about 700 × 500"):
        prepare(folder, tmp_path / "T", slide=tmp_path / "large.png")
    assert not list((tmp_path / "T").glob("patches/.*"))


def edit_table(change):
    def edit(folder):
        table = change(folder.table.copy())
        folders.write_positions(folder.outs / "spatial" / "tissue_positions.csv", table)

    return edit


def edit_text(change):
    def edit(folder):
        file = folder.outs / "spatial" / "tissue_positions.csv"
        file.write_text(change(file.read_text()))

    return edit


def edit_h5(**changed):
    def edit(folder):
        kept = folder.table["in_tissue"].to_numpy() == 1
        datasets = {name: change(folder) for name, change in changed.items()}
        datasets = {name.replace("__", "/"): data for name, data in datasets.items()}
        names = folder.table["barcode"].to_numpy()[kept]
        path = folder.outs / "filtered_feature_bc_matrix.h5"
        folders.write_h5(
            path, folder.counts[kept], names, folder.ids, folder.symbols, folder.types, **datasets
        )

    return edit


def swap_barcodes_and_features(folder):
    kept = folder.table["in_tissue"].to_numpy() == 1
    names = folder.table["barcode"].to_numpy()[kept]
    path = folder.outs / "filtered_feature_bc_matrix.h5"
    folders.write_h5(
        path, folder.counts[kept].T, folder.symbols, names, names, ["Gene Expression"] * len(names)
    )


def cut_h5(folder):
    path = folder.outs / "filtered_feature_bc_matrix.h5"
    path.write_bytes(path.read_bytes()[:3000])


def spoil_h5(folder):
    path = folder.outs / "filtered_feature_bc_matrix.h5"
    with h5py.File(path) as file:
        offset = file["matrix/data"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = bytes(20)
    path.write_bytes(content)


def last_row_elsewhere(table):
    table.loc[len(table) - 1, "pxl_col_in_fullres"] += 12
    return table


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_table(lambda t: t.drop(columns="in_tissue")), "lacks the column 'in_tissue'; it has barcode"),
        (edit_table(lambda t: t.assign(pxl_row_in_fullres=np.nan)), "has pxl_row_in_fullres nan, which is not a number"),
        (edit_table(lambda t: t.assign(in_tissue=2)), "has in_tissue 2, which is not 0 or 1"),
        (edit_table(lambda t: t.assign(array_row=t["array_row"] + 0.5)), r"has array_row [\d.]+, which is not a whole number"),
        (edit_table(lambda t: t.assign(barcode="A-1")), "barcode 'A-1' occurs more than once"),
        (edit_table(lambda t: t.assign(barcode="X" + t["barcode"])), "share no barcode"),
        (edit_table(lambda t: t[t["array_row"] > 2]), r"lacks the barcode '.*' of filtered_feature_bc_matrix\.h5"),
        (edit_table(lambda t: t.assign(in_tissue=0)), "none of the .* spots .* is in tissue"),
        (edit_table(lambda t: t.assign(pxl_row_in_fullres=t["pxl_row_in_fullres"] * 1.2)), "a px is .* by neighbouring spots in one"),
        (edit_table(lambda t: t.assign(pxl_row_in_fullres=t["pxl_row_in_fullres"] + t["pxl_col_in_fullres"])), "meet at .* degrees"),
        (edit_table(last_row_elsewhere), "lies 29 µm from its place"),
        (edit_table(lambda t: t.iloc[:0]), r"tissue_positions\.csv: has no rows"),
        (edit_text(lambda text: ""), r"tissue_positions\.csv: is truncated or damaged .*the columns barcode, in_tissue"),
        (edit_text(lambda text: text.split("\n", 1)[1].replace(",", ";")), "has 1 columns and no header"),
        (edit_text(lambda text: text.rsplit(",", 1)[0]), "has pxl_col_in_fullres nan, which is not a number"),
        (edit_h5(shape=lambda f: [87, 6]), r"is 87 × 6, and there are 6 features"),
        (edit_h5(shape=lambda f: [(f.table["in_tissue"] == 1).sum(), 6]), "is transposed"),
        (edit_h5(indptr=lambda f: [0] * 7), "is transposed: its columns are features"),
        (edit_h5(indptr=lambda f: np.zeros(f.table["in_tissue"].sum() + 1, int) - 1), "indptr does not rise"),
        (edit_h5(data=lambda f: None), "has no dataset 'matrix/data'"),
        (edit_h5(features__name=lambda f: [b"A"]), "features/name has 1 values for 6 features"),
        (edit_h5(features__feature_type=lambda f: [b"Antibody Capture"] * 6), r"no feature of the type Gene Expression \(6 of Antibody"),
        (swap_barcodes_and_features, r"is transposed: what it calls features are the spots of tissue_positions\.csv"),
        (cut_h5, r"filtered_feature_bc_matrix\.h5: cannot be opened as an h5 file .*it should be Space Ranger's"),
        (spoil_h5, r"filtered_feature_bc_matrix\.h5: is truncated or damaged"),
        (lambda f: (f.outs / "filtered_feature_bc_matrix.h5").unlink(), "has neither filtered_feature_bc_matrix.h5 nor the folder"),
        (lambda f: (f.outs / "spatial" / "tissue_positions.csv").unlink(), "has none of tissue_positions.parquet"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, edit, message):
    folder = visium(tmp_path)
    edit(folder)
    with pytest.raises(DataError, match=message) as caught:
        prepare(folder, tmp_path / "T")
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "T").rglob("*") if path.is_file()]


def rewrite(folder, name, change):
    file = folder.outs / "filtered_feature_bc_matrix" / name
    file.write_bytes(gzip.compress(change(gzip.decompress(file.read_bytes()))))


def transpose_mtx(content):
    head, *lines = content.decode().splitlines()
    rows = [line.split() for line in lines if not line.startswith("%")]
    return "\n".join([head, *(" ".join((row[1], row[0], row[2])) for row in rows), ""]).encode()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: rewrite(f, "matrix.mtx.gz", transpose_mtx), "is transposed: 123 spots × 6 features"),
        (lambda f: rewrite(f, "barcodes.tsv.gz", lambda c: c.split(b"\n", 1)[1]), "is 6 × 123, and there are 6 features and 122"),
        (lambda f: rewrite(f, "features.tsv.gz", lambda c: c.replace(b"\t", b" ")), "has no second column"),
        (lambda f: rewrite(f, "matrix.mtx.gz", lambda c: c[:-40]), "is truncated or damaged"),
        (lambda f: rewrite(f, "matrix.mtx.gz", lambda c: b"hello"), "is truncated or damaged"),
        (lambda f: rewrite(f, "matrix.mtx.gz", lambda c: _with_value(c, b"-3")), r"values that are not counts \(-3"),
        (lambda f: (f.outs / "filtered_feature_bc_matrix" / "features.tsv.gz").unlink(), r"features\.tsv\.gz: missing"),
    ],
)  # fmt: skip
def test_matrix_market_files_that_cannot_be_used(tmp_path, edit, message):
    folder = visium(tmp_path, matrix="filtered_feature_bc_matrix")
    edit(folder)
    with pytest.raises(DataError, match=message):
        prepare(folder, tmp_path / "T")


def _with_value(content, value):
    lines = content.rstrip(b"\n").split(b"\n")
    lines[-1] = b" ".join([*lines[-1].split()[:2], value])
    return b"\n".join([*lines, b""])


def test_tables_may_be_compressed_or_not_whatever_their_name(tmp_path):
    folder = visium(tmp_path, matrix="filtered_feature_bc_matrix")
    whole = VisiumFolder(folder=folder.outs).read("S")
    for name in ("features.tsv.gz", "matrix.mtx.gz", "barcodes.tsv.gz"):
        file = folder.outs / "filtered_feature_bc_matrix" / name
        file.write_bytes(gzip.decompress(file.read_bytes()))
    file.rename(file.with_suffix(""))
    again = VisiumFolder(folder=folder.outs.parent).read("S")
    np.testing.assert_array_equal(again.counts.toarray(), whole.counts.toarray())


def test_files_may_be_named(tmp_path):
    folder = visium(tmp_path)
    spatial = folder.outs / "spatial"
    (spatial / "tissue_positions.csv").rename(tmp_path / "places.csv")
    (folder.outs / "filtered_feature_bc_matrix.h5").rename(tmp_path / "GSM1_matrix.h5")
    source = VisiumFolder(
        folder=folder.outs, counts=tmp_path / "GSM1_matrix.h5", positions=tmp_path / "places.csv"
    )
    assert len(source.read("S").barcodes) == (folder.table["in_tissue"] == 1).sum()
    with pytest.raises(DataError, match="no such file or folder"):
        VisiumFolder(folder=folder.outs, counts=tmp_path / "no.h5").read("S")
    with pytest.raises(DataError, match="no such folder; give the one that Space Ranger calls outs"):
        VisiumFolder(folder=tmp_path / "no").read("S")


def test_one_row_of_spots_takes_the_images_word(tmp_path):
    folder = visium(tmp_path)
    row = folder.table[folder.table["array_row"] == 4].reset_index()
    folders.write_positions(folder.outs / "spatial" / "tissue_positions.csv", row[list(folders.COLUMNS)])
    one = folders.Folder(
        folder.outs, folder.image, row, folder.counts[row["index"]], folder.ids, folder.symbols, folder.types
    )
    folders.write_matrix(folder.outs / "filtered_feature_bc_matrix.h5", one, slice(None))
    assert VisiumFolder(folder=folder.outs).read("S").um_per_px is None
    with pytest.raises(
        DataError, match="states no usable resolution; give it with `slide_resolution_um_per_px`"
    ):
        prepare(folder, tmp_path / "T")
    slide = folders.write_image(tmp_path / "stated.tif", um_per_px=UM_PER_PX)
    assert prepare(folder, tmp_path / "T", slide=slide).um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
