import numpy as np
import pytest

from timm_mvhybrid.cohorts.pseudo_spots import PatchGrid, SquareCounts
from timm_mvhybrid.runtime.errors import DataError


def counted(grid, x, y, gene, *, batches=7, num_genes=3):
    found = SquareCounts(grid)
    for part in np.array_split(np.arange(len(x)), batches):
        found.add(x[part], y[part], gene[part])
    squares, counts = found.table(num_genes)
    return found, squares, counts.toarray()


def by_brute_force(grid, x, y, gene, num_genes=3):
    table = {}
    for number in range(grid.num_columns * grid.num_rows):
        row, column = divmod(number, grid.num_columns)
        left, top = column * grid.stride_px, row * grid.stride_px
        inside = (left <= x) & (x < left + grid.side_px) & (top <= y) & (y < top + grid.side_px)
        if inside.any():
            table[number] = np.bincount(gene[inside], minlength=num_genes)
    return table


@pytest.mark.parametrize("stride", [40.0, 13.0, 7.3, 25.0, 20.0, 40.5])
def test_squares_hold_what_lies_in_them(stride):
    rng = np.random.default_rng(0)
    grid = PatchGrid.over((230, 170), 40.0, stride)
    x, y = rng.uniform(-20, 260, 2000), rng.uniform(-20, 200, 2000)
    gene = rng.integers(0, 3, 2000).astype(np.int32)
    found, squares, counts = counted(grid, x, y, gene)
    wanted = by_brute_force(grid, x, y, gene)
    assert squares.tolist() == list(wanted)
    np.testing.assert_array_equal(counts, np.array(list(wanted.values())))
    right, bottom = ((number - 1) * stride + 40 for number in (grid.num_columns, grid.num_rows))
    assert right <= 230 < right + stride
    assert bottom <= 170 < bottom + stride
    if stride <= 40:
        assert found.num_outside == int(((x < 0) | (y < 0) | (x >= right) | (y >= bottom)).sum())
    if stride == 40:
        assert counts.sum() + found.num_outside == 2000


def test_sides_that_binary_numbers_cannot_hold_lose_nothing_at_their_edges():
    side = 224 * 0.5 / 0.2737
    grid = PatchGrid.over((20000, 20000), side, side)
    edges = np.arange(grid.num_columns) * side
    x = np.concatenate([np.nextafter(edges[1:], 0), edges, np.nextafter(edges, np.inf)])
    found, _, counts = counted(grid, x, np.full(len(x), 5.0), np.zeros(len(x), np.int32))
    assert found.num_outside == 0
    assert counts.sum() == len(x)


def test_a_square_holds_its_left_and_upper_edge_alone():
    grid = PatchGrid.over((20, 20), 10, 10)
    x, y = np.array([0.0, 10.0, 9.999, 20.0]), np.array([10.0, 0.0, 19.999, 3.0])
    found, squares, counts = counted(grid, x, y, np.array([0, 1, 2, 0], np.int32), batches=1)
    assert squares.tolist() == [1, 2]
    assert counts.tolist() == [[0, 1, 0], [1, 0, 1]]
    assert found.num_outside == 1


def test_centres_and_names():
    grid = PatchGrid.over((100, 60), 20, 10)
    assert (grid.num_columns, grid.num_rows) == (9, 5)
    assert grid.centres(np.array([0, 10])).tolist() == [[10, 10], [20, 20]]
    assert grid.names(np.array([0, 8, 10])) == ("0x0", "8x0", "1x1")


def test_nothing_counted_and_what_cannot_be():
    found, squares, counts = counted(PatchGrid.over((9, 9), 9, 9), *np.empty((2, 0)), np.empty(0, np.int32))
    assert (found.num_outside, len(squares), counts.shape) == (0, 0, (0, 3))
    with pytest.raises(DataError, match=r"a square of 10.0 px does not fit into the image of 9 × 30 px"):
        PatchGrid.over((9, 30), 10, 10)
    with pytest.raises(DataError, match="`stride_px` is 0"):
        PatchGrid.over((9, 9), 1, 0)
    with pytest.raises(DataError, match="more than 1,048,576 genes"):
        SquareCounts(PatchGrid.over((9, 9), 9, 9)).add(np.ones(1), np.ones(1), np.array([1 << 20], np.int32))
