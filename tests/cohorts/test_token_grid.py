from pathlib import Path

import numpy as np
import pytest

from timm_mvhybrid.cohorts import pool_transcripts
from timm_mvhybrid.cohorts.token_grid import pool_patches
from timm_mvhybrid.runtime.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "finetuning" / "token_pooling.npz"
SIZES = {"left_px": 10.0, "top_px": 20.0, "side_um": 8.0, "um_per_px": 0.5, "grid": 4, "num_genes": 3}


def test_pooling_is_the_golden_one():
    golden = dict(np.load(GOLDEN))
    sizes = {name: float(golden[name]) for name in ("left_px", "top_px", "side_um", "min_qv")}
    found = pool_transcripts(
        *(golden[name] for name in ("x_px", "y_px", "gene", "qv")),
        **sizes,
        um_per_px=float(golden["px_um"]),
        grid=int(golden["grid"]),
        num_genes=golden["counts"].shape[1],
    )
    np.testing.assert_array_equal(found, golden["counts"])


def test_cells_hold_their_left_and_upper_edges_alone():
    # a cell is 4 px; the patch goes from 10 to 26 and from 20 to 36
    x = [10, 14, 13.9, 26, 9.9, 25.9, 10]
    y = [20, 20, 24, 20, 20, 35.9, 36]
    found = pool_transcripts(x, y, [0, 1, 2, 0, 0, 1, 0], None, **SIZES)
    assert [tuple(place) for place in np.argwhere(found).tolist()] == [(0, 0), (1, 1), (4, 2), (15, 1)]
    assert found.sum() == 4


def test_low_and_unknown_quality_does_not_count():
    found = pool_transcripts([11, 11, 11], [21, 21, 21], [0, 1, 2], [20, 19.9, np.nan], **SIZES)
    assert found[0].tolist() == [1, 0, 0]
    everything = pool_transcripts([11, 11], [21, 21], [0, 1], [20, 19.9], **SIZES, min_qv=0)
    assert everything[0].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_px": [1]}, "`y_px` has 1 values and `x_px` 2"),
        ({"qv": [30]}, "`qv` has 1 values"),
        ({"gene": [0, 3]}, "`gene` goes from 0 to 3, `num_genes` is 3"),
        ({"gene": [-1, 0]}, "`gene` goes from -1"),
        ({"gene": [0.0, 1.0]}, "`gene` is float64"),
        ({"x_px": [1, np.nan]}, "`x_px` holds NaN"),
        ({"x_px": [[1, 2]]}, "`x_px` is 2-dimensional"),
        ({"um_per_px": 0}, "`um_per_px` is 0"),
        ({"side_um": np.nan}, "`side_um` is nan"),
        ({"grid": 0}, "`grid` is 0"),
    ],
)
def test_what_cannot_be_pooled_is_named(change, message):
    arguments = {"x_px": [1, 2], "y_px": [1, 2], "gene": [0, 1], "qv": [30, 30], **SIZES, **change}
    with pytest.raises(DataError, match=message):
        pool_transcripts(**arguments)


def test_patches_of_a_slide_are_pooled_as_each_by_itself():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-50, 500, (2, 3000))
    x[:200], y[:200] = rng.integers(0, 8, (2, 200)) * 64  # on edges
    gene = rng.integers(0, 5, 3000)
    corners = np.stack(np.meshgrid([-100, 0, 64, 100, 448, 600], [0, 64, 96, 500]), axis=-1).reshape(-1, 2)
    found = pool_patches(x, y, gene, corners, side_px=64.0, grid=4, num_genes=5)
    for row, (left, top) in zip(found.toarray(), corners, strict=True):
        sizes = {"left_px": left, "top_px": top, "side_um": 32.0, "um_per_px": 0.5, "grid": 4, "num_genes": 5}
        np.testing.assert_array_equal(row.reshape(16, 5), pool_transcripts(x, y, gene, None, **sizes))
    assert found.sum() > 0


def test_a_slide_without_transcripts_has_empty_patches():
    nothing = np.empty(0)
    found = pool_patches(
        nothing, nothing, nothing.astype(int), np.zeros((2, 2), int), side_px=1, grid=2, num_genes=3
    )
    assert found.shape == (2, 12)
    assert found.nnz == 0
