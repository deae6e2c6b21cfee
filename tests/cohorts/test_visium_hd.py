"""Visium HD: sums over squares of bins are exact, lie where they belong, and say what they leave out."""

import json

import h5py
import numpy as np
import pytest
from scipy import sparse
from support import space_ranger_folders as folders
from support.space_ranger_folders import MARKER, RED, UM_PER_PX, visium_hd

from timm_mvhybrid.cohorts import PatchOptions, VisiumHDFolder, prepare_sample, tenx_matrix
from timm_mvhybrid.cohorts.bin_sums import BinNames, SquareGrid, sum_bins
from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.cohorts.tenx_matrix import MatrixChunk
from timm_mvhybrid.data import PatchH5Source
from timm_mvhybrid.runtime.errors import DataError, ParameterError

# 112 µm, as by default, and few px: 14 bins of 8 µm
PATCHES = PatchOptions(patch_size_px=28, resolution_um_per_px=4.0)


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes the same happen to a few thousand bins as to millions."""
    monkeypatch.setattr(tenx_matrix, "_BARCODES_AT_A_TIME", 1000)
    monkeypatch.setattr(tenx_matrix, "_VALUES_AT_A_TIME", 700)


def by_hand(folder, first_row, first_col, side):
    """Adds the bins of one square up, one by one."""
    table = folder.table
    rows, cols = table["array_row"], table["array_col"]
    inside = (rows >= first_row) & (rows < first_row + side) & (cols >= first_col) & (cols < first_col + side)
    return folder.counts[inside & (table["in_tissue"] == 1)].sum(axis=0), inside


@pytest.mark.parametrize(
    "matrix", ["filtered_feature_bc_matrix.h5", "raw_feature_bc_matrix.h5", "filtered_feature_bc_matrix"]
)
@pytest.mark.usefixtures("small_chunks")
def test_sums_are_exact_and_nothing_is_lost(tmp_path, matrix):
    folder = visium_hd(tmp_path, matrix=matrix)
    sample = VisiumHDFolder(folder=folder.outs).read("S", PATCHES)
    first = np.stack([sample.columns["array_row"], sample.columns["array_col"]], axis=1)
    assert set(map(tuple, first.tolist())) <= {(14 * i, 14 * j) for i in range(8) for j in range(10)}
    for number, (row, col) in enumerate(first.tolist()):
        expected, inside = by_hand(folder, row, col, 14)
        np.testing.assert_array_equal(sample.counts[number].toarray().ravel(), expected)
        fraction = (inside & (folder.table["in_tissue"] == 1)).sum() / 14**2
        assert sample.columns["fraction_in_tissue"][number] == pytest.approx(fraction)
        assert fraction >= 0.5
    # 100 × 130 bins are 7 whole squares and 2 rows more, 9 and 4 columns; of the first rows 9 of 14 are outside tissue
    assert len(first) == 6 * 9
    in_tissue = folder.table["in_tissue"] == 1
    notes = sample.notes
    stated = folder.counts.sum() if matrix.startswith("raw") else folder.counts[in_tissue].sum()
    assert notes["num_counts_of_genes"] == stated
    assert notes["num_counts_outside_tissue"] == stated - folder.counts[in_tissue].sum()
    assert (
        sample.counts.sum() + notes["num_counts_outside_tissue"] + notes["num_counts_in_no_square"] == stated
    )
    assert notes["num_counts_in_no_square"] > 0


def test_every_count_is_in_a_square_where_any_tissue_will_do(tmp_path):
    folder = visium_hd(tmp_path)
    sample = VisiumHDFolder(folder=folder.outs, min_tissue=0).read("S", PATCHES)
    assert sample.counts.sum() == folder.counts[folder.table["in_tissue"] == 1].sum()
    assert sample.notes["num_counts_in_no_square"] == 0
    assert len(sample.barcodes) == 8 * 10


@pytest.mark.parametrize(
    ("degrees", "is_mirrored", "origin"),
    [(2.0, True, (120, 60)), (-3.0, False, (120, 80)), (91.0, True, (660, 10))],
)
def test_squares_lie_on_their_tissue(tmp_path, degrees, is_mirrored, origin):
    folder = visium_hd(tmp_path, degrees=degrees, is_mirrored=is_mirrored, origin=origin, shape=(100, 150))
    prepared = prepare_sample(
        VisiumHDFolder(folder=folder.outs.parent),
        folder.image,
        tmp_path / "T",
        sample_id="S",
        study="A",
        patches=PATCHES,
    )
    assert prepared.um_per_px == pytest.approx(UM_PER_PX)
    sample = read_sample(open_task(tmp_path / "T"), "S")
    source = PatchH5Source(sample.patches)
    # fraction of the patch that is red against bins that express the marker
    red = np.array(
        [(np.abs(source[index].astype(int) - RED).max(axis=2) < 60).mean() for index in range(len(source))]
    )
    disc = folder.on_disc() & (folder.table["in_tissue"] == 1).to_numpy()
    marked = []
    for name in sample.barcodes:
        _, inside = by_hand(folder, *map(int, name.split("_")[2:]), 14)
        marked.append((disc & inside).sum() / 14**2)
        centre = folder.table.loc[inside, ["pxl_col_in_fullres", "pxl_row_in_fullres"]].mean()
        if inside.sum() == 14**2:
            np.testing.assert_allclose(sample.spatial[sample.barcodes.index(name)], centre, atol=1e-6)
    assert sample.genes[0] == MARKER
    assert max(marked) > 0.9
    assert min(marked) == 0
    # bins turned by 3 degrees and patches at whole px share all but a few percent
    assert np.abs(red - marked).max() < 0.12


def test_bins_of_any_size_give_the_same_sums(tmp_path):
    folder = visium_hd(tmp_path, bin_um=2, shape=(112, 168), fill=0.05)
    whole = VisiumHDFolder(folder=folder.outs, min_tissue=0).read("S", PATCHES)
    # 8 µm bins are sums of 2 µm bins
    eight = visium_hd(tmp_path / "eight", bin_um=8, shape=(28, 42))
    eight.counts = folder.counts.reshape(28, 4, 42, 4, -1).sum(axis=(1, 3)).reshape(28 * 42, -1)
    eight.table["in_tissue"] = 1
    table = folder.table
    outside = table["in_tissue"].to_numpy() == 0
    eight.counts -= (
        (folder.counts * outside[:, None]).reshape(28, 4, 42, 4, -1).sum(axis=(1, 3)).reshape(28 * 42, -1)
    )
    square = eight.outs / "binned_outputs" / "square_008um"
    folders.write_positions(square / "spatial" / "tissue_positions.parquet", eight.table)
    folders.write_matrix(square / "filtered_feature_bc_matrix.h5", eight, slice(None))
    coarse = VisiumHDFolder(folder=eight.outs, min_tissue=0).read("S", PATCHES)
    assert coarse.barcodes != whole.barcodes  # they name the bins
    np.testing.assert_array_equal(coarse.counts.toarray(), whole.counts.toarray())
    square.rename(folder.outs / "binned_outputs" / "square_008um")
    assert VisiumHDFolder(folder=folder.outs).read("S", PATCHES).notes["bin_size_um"] == 8
    assert VisiumHDFolder(folder=folder.outs, bin_size_um=2).read("S", PATCHES).notes["bin_size_um"] == 2
    direct = VisiumHDFolder(folder=folder.outs / "binned_outputs" / "square_002um")
    assert direct.read("S", PATCHES).notes["bin_size_um"] == 2


@pytest.mark.parametrize(("side", "stride"), [(6, 6), (6, 4), (6, 1), (4, 7), (9, 30)])
def test_squares_that_overlap_or_leave_gaps(side, stride):
    draw = np.random.default_rng(0)
    shape, num_features = (23, 31), 4
    grid = SquareGrid(num_rows=shape[0], num_cols=shape[1], side=side, stride=stride)
    mask = draw.random(shape) < 0.8
    fraction = grid.fraction(mask)
    wanted = fraction >= 0.5
    number_of = np.full(grid.shape, -1, dtype=np.int32)
    number_of[wanted] = np.arange(wanted.sum())
    counts = draw.poisson(0.5, (*shape, num_features))
    rows, cols = (index.ravel() for index in np.indices(shape))
    order = draw.permutation(len(rows))
    names = np.array([f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(rows, cols, strict=True)], dtype="S")
    chunks = [
        MatrixChunk(
            barcodes=names[part], values=sparse.csr_matrix(counts[rows[part], cols[part]].astype(np.int32))
        )
        for part in np.array_split(order, 7)
    ]
    is_gene = np.array([True, True, False, True])
    sums = sum_bins(chunks, BinNames.of(names[0]).places, mask, grid, number_of, is_gene)
    reached = np.zeros(shape, dtype=bool)
    for i, j in np.ndindex(grid.shape):
        window = np.s_[i * stride : i * stride + side, j * stride : j * stride + side]
        assert fraction[i, j] == pytest.approx(mask[window].sum() / side**2)
        if wanted[i, j]:
            reached[window] = True
            expected = (counts * mask[..., None])[window].sum(axis=(0, 1))
            np.testing.assert_array_equal(sums.values[number_of[i, j]].toarray().ravel(), expected)
    assert sums.num_repeated == 0
    of_genes = counts[..., is_gene].sum(axis=2)
    assert sums.num_counts == of_genes.sum()
    assert sums.num_outside_tissue == of_genes[~mask].sum()
    assert sums.num_in_no_square == of_genes[mask & ~reached].sum()


def test_sums_beyond_32_bits_are_exact():
    grid = SquareGrid(num_rows=2, num_cols=1, side=2, stride=2)
    values = sparse.csr_matrix(np.array([[2**31 - 1], [2**31 - 1]], dtype=np.int32))
    names = np.array([b"s_008um_00000_00000-1", b"s_008um_00001_00000-1"])
    sums = sum_bins(
        [MatrixChunk(barcodes=names, values=values)],
        BinNames.of(names[0]).places,
        np.ones((2, 1), dtype=bool),
        grid,
        np.zeros((1, 1), dtype=np.int32),
        np.array([True]),
    )
    assert sums.values.toarray().tolist() == [[2**32 - 2]]
    assert sums.num_counts == 2**32 - 2


@pytest.mark.parametrize("name", ["BIN-{row}-{col}", "s_{size:03d}um_{col:05d}_{row:05d}-1", "r{row}x{col}"])
@pytest.mark.usefixtures("small_chunks")
def test_names_that_do_not_spell_row_and_column_are_looked_up(tmp_path, name):
    usual = visium_hd(tmp_path / "usual", shape=(40, 50))
    other = visium_hd(tmp_path / "other", shape=(40, 50), name=name, positions="tissue_positions.csv")
    found = [VisiumHDFolder(folder=folder.outs).read("S", PATCHES) for folder in (usual, other)]
    assert found[0].barcodes == found[1].barcodes
    np.testing.assert_array_equal(found[0].counts.toarray(), found[1].counts.toarray())
    np.testing.assert_allclose(found[0].spatial, found[1].spatial, rtol=1e-9)


def test_options_and_gaps(tmp_path):
    folder = visium_hd(tmp_path, shape=(40, 50))
    overlapping = VisiumHDFolder(folder=folder.outs, stride_px=14).read("S", PATCHES)
    assert set(np.diff(np.unique(overlapping.columns["array_row"]))) == {7}
    row, col = overlapping.columns["array_row"][3], overlapping.columns["array_col"][3]
    np.testing.assert_array_equal(overlapping.counts[3].toarray().ravel(), by_hand(folder, row, col, 14)[0])
    for options, patches, message in (
        (
            {"stride_px": 3.0},
            PATCHES,
            r"112 µm every 12 µm are not whole numbers of bins of 8 µm; change `patch_size_px`",
        ),
        ({"stride_px": 0.0}, PATCHES, "`stride_px` must be finite and above 0"),
        ({}, PatchOptions(patch_size_px=25, resolution_um_per_px=4.0), "patches of 100 µm every 100 µm"),
    ):
        with pytest.raises(ParameterError, match=message):
            VisiumHDFolder(folder=folder.outs, **options).read("S", patches)
    with pytest.raises(ParameterError, match="`min_tissue` must lie between 0 and 1"):
        VisiumHDFolder(folder=folder.outs, min_tissue=2)
    with pytest.raises(DataError, match="square_016um; it has square_008um"):
        VisiumHDFolder(folder=folder.outs, bin_size_um=16).read("S", PATCHES)
    (folder.outs / "binned_outputs").rename(tmp_path / "away")
    with pytest.raises(DataError, match="has no folder binned_outputs/square_…um; give the folder"):
        VisiumHDFolder(folder=folder.outs).read("S", PATCHES)


def edit_table(change):
    def edit(folder, square):
        folders.write_positions(square / "spatial" / "tissue_positions.parquet", change(folder.table.copy()))

    return edit


def edit_factors(**changed):
    def edit(folder, square):
        file = square / "spatial" / "scalefactors_json.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    return edit


def transpose(folder, square):
    with h5py.File(square / "filtered_feature_bc_matrix.h5", "r+") as file:
        file["matrix/shape"][...] = file["matrix/shape"][()][::-1]


def repeat(folder, square):
    with h5py.File(square / "filtered_feature_bc_matrix.h5", "r+") as file:
        file["matrix/barcodes"][3] = file["matrix/barcodes"][700]


def cut(name):
    def edit(folder, square):
        (file,) = square.rglob(name)
        file.write_bytes(file.read_bytes()[:-4000])

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_table(lambda t: t.assign(in_tissue=0)), r"has 50% of its bins in tissue \(the fullest has 0.0%\); lower `min_tissue`"),
        (edit_table(lambda t: t.assign(array_row=t["array_row"] % 7)), "two bins have the same row and column"),
        (edit_table(lambda t: t[t["array_row"] > 20]), r"lacks the barcode '.*' of filtered_feature_bc_matrix\.h5"),
        (edit_table(lambda t: t.assign(barcode=[f"x{number}" for number in range(len(t))])), "share no barcode"),
        (edit_table(lambda t: t[t["array_row"] == 20]), "all bins are in one row or column"),
        (edit_table(lambda t: t.assign(pxl_row_in_fullres=t["pxl_row_in_fullres"].sample(frac=1, random_state=0).to_numpy())), "meet at|in one direction|from their places"),
        (edit_table(lambda t: t.drop(columns="array_row")), "lacks the column 'array_row'"),
        (edit_factors(microns_per_pixel=2.7), r"states microns_per_pixel 2\.7, and by tissue_positions\.parquet .* it is 2\.5"),
        (edit_factors(bin_size_um=16), "states bin_size_um 16, and by"),
        (edit_factors(microns_per_pixel="x"), "cannot be read as Space Ranger's scale factors"),
        (transpose, "is transposed"),
        (repeat, "1 barcodes occur more than once; give the matrix of one sample"),
        (cut("*.parquet"), r"tissue_positions\.parquet: is truncated or damaged"),
        (cut("*.h5"), r"matrix\.h5: cannot be opened as an h5 file .*it should be Space Ranger's"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, edit, message):
    folder = visium_hd(tmp_path, shape=(40, 50))
    edit(folder, folder.outs / "binned_outputs" / "square_008um")
    with pytest.raises(DataError, match=message):
        prepare_sample(
            VisiumHDFolder(folder=folder.outs),
            folder.image,
            tmp_path / "T",
            sample_id="S",
            study="A",
            patches=PATCHES,
        )


def test_bins_that_are_turned_are_said_to_be(tmp_path):
    folder = visium_hd(tmp_path, shape=(40, 50), degrees=8)
    with pytest.warns(UserWarning, match="turned by 8 degrees"):
        sample = VisiumHDFolder(folder=folder.outs).read("S", PATCHES)
    assert sample.notes["rotation_degrees"] == pytest.approx(8)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        (b"s_008um_00012_00345-1", ([12], [345])),
        (b"s_002um_3_4-1", ([3], [4])),
        (b"s_008um_00012_00345", None),
        (b"AAACAAGTATCTCCCA-1", None),
    ],
)
def test_names_of_bins(name, places):
    spelled = BinNames.of(name)
    assert (spelled is None) == (places is None)
    if spelled is not None:
        assert tuple(part.tolist() for part in spelled.places(np.array([name]))) == places
        for other in (
            name.replace(b"u", b"v"),
            name.replace(b"_", b"-"),
            name + b"1",
            name.replace(b"4", b"/"),
        ):
            assert spelled.places(np.array([name, other])) is None
