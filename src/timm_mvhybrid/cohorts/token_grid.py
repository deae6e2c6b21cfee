"""Places of transcripts → counts in the cells of a grid over a patch, one cell for each patch token or several."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import DataError
from ..runtime.extras import require

MIN_QV = 20.0
"""Phred-scaled quality from which Xenium counts a transcript: one decoding in a hundred is wrong."""


def pool_transcripts(
    x_px: ArrayLike,
    y_px: ArrayLike,
    gene: ArrayLike,
    qv: ArrayLike | None,
    *,
    left_px: float,
    top_px: float,
    side_um: float,
    um_per_px: float,
    grid: int,
    num_genes: int,
    min_qv: float = MIN_QV,
) -> NDArray[np.int64]:
    r"""Counts transcripts in the cells of a grid over a square patch.

    A transcript lies in column :math:`\lfloor (x - \mathrm{left}) / \mathrm{side} \cdot \mathrm{grid} \rfloor`, and in its
    row likewise: a cell holds its left and upper edge and not the others, so that neighbouring patches share none.

    Args:
        x_px: Columns in level-0 px of the image, (transcripts,).
        y_px: Rows in level-0 px of the image, (transcripts,).
        gene: Number of the gene of each, from 0 to ``num_genes - 1``, (transcripts,).
        qv: Phred-scaled quality of each, (transcripts,); None where there is none. NaN is below any quality.
        left_px: Left edge of the patch.
        top_px: Upper edge of the patch.
        side_um: Side of the patch in µm.
        um_per_px: Size of a level-0 px in µm.
        grid: Cells along a side.
        num_genes: Number of genes.
        min_qv: Lowest quality that counts.

    Returns:
        Counts, (grid², genes); row · grid + column.

    Raises:
        DataError: If lengths differ, a place is not finite, a gene has no such number, or a size is not above 0.
    """
    x, y = (_vector(name, values) for name, values in (("x_px", x_px), ("y_px", y_px)))
    genes = np.asarray(gene)
    lengths = {"y_px": len(y), "gene": len(genes), **({} if qv is None else {"qv": len(np.asarray(qv))})}
    for name, length in lengths.items():
        if length != len(x):
            raise DataError(f"`{name}` has {length} values and `x_px` {len(x)}; give one for each transcript")
    _check_sizes(side_um=side_um, um_per_px=um_per_px, grid=grid, num_genes=num_genes)
    if len(genes) and genes.dtype.kind not in "iu":
        raise DataError(f"`gene` is {genes.dtype}; give the numbers of the genes")
    if len(genes) and (genes.min() < 0 or genes.max() >= num_genes):
        raise DataError(f"`gene` goes from {genes.min()} to {genes.max()}, `num_genes` is {num_genes}")
    cells = _cells(x, y, left_px, top_px, side_um / um_per_px, grid)
    kept = cells >= 0
    if qv is not None:
        kept &= np.asarray(qv) >= min_qv
    places = cells[kept] * num_genes + genes[kept].astype(np.int64)
    return np.bincount(places, minlength=grid * grid * num_genes).reshape(grid * grid, num_genes)


def pool_patches(
    x_px: NDArray[np.floating[Any]],
    y_px: NDArray[np.floating[Any]],
    gene: NDArray[np.integer[Any]],
    corners_px: NDArray[np.integer[Any]],
    *,
    side_px: float,
    grid: int,
    num_genes: int,
) -> Any:
    """Counts the transcripts of a slide in the grids of many patches, which may overlap.

    Args:
        x_px: Columns in level-0 px, (transcripts,); of those that count, see ``pool_transcripts``.
        y_px: Rows in level-0 px, (transcripts,).
        gene: Number of the gene of each, (transcripts,).
        corners_px: Top-left corners of the patches in level-0 px, (patches, 2) as x, y.
        side_px: Side of a patch in level-0 px.
        grid: Cells along a side.
        num_genes: Number of genes.

    Returns:
        Counts, (patches, grid² · genes), SciPy CSR, float32; the columns are the rows of ``pool_transcripts`` one after
        the other.

    Raises:
        DataError: If a size is not above 0.
    """
    _check_sizes(side_px=side_px, grid=grid, num_genes=num_genes)
    sparse = require("scipy.sparse")
    # bands of a patch's height, each sorted from left to right: a patch meets two, and a stretch of each
    first = float(y_px.min()) if len(y_px) else 0.0
    band = np.floor((y_px - first) / side_px).astype(np.int64)
    order = np.lexsort((x_px, band))
    x, y, genes, band = x_px[order], y_px[order], gene[order].astype(np.int64), band[order]
    starts = np.searchsorted(band, np.arange(int(band[-1]) + 2 if len(band) else 1))
    columns, counts = [], []
    for left, top in corners_px.astype(np.float64).tolist():
        found = []
        lowest = int(np.floor((top - first) / side_px))
        for number in range(max(lowest, 0), min(lowest + 2, len(starts) - 1)):
            begin, end = starts[number], starts[number + 1]
            inside = np.searchsorted(x[begin:end], (left, left + side_px)) + begin
            found.append(np.arange(inside[0], inside[1]))
        near = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        cells = _cells(x[near], y[near], left, top, side_px, grid)
        here, number_of = np.unique(
            cells[cells >= 0] * num_genes + genes[near][cells >= 0], return_counts=True
        )
        columns.append(here)
        counts.append(number_of)
    ends = np.concatenate([[0], np.cumsum([len(part) for part in columns])]).astype(np.int64)
    nothing = [np.empty(0, dtype=np.int64)]
    return sparse.csr_matrix(
        (np.concatenate(counts or nothing).astype(np.float32), np.concatenate(columns or nothing), ends),
        shape=(len(corners_px), grid * grid * num_genes),
    )


def _cells(
    x: NDArray[np.floating[Any]],
    y: NDArray[np.floating[Any]],
    left_px: float,
    top_px: float,
    side_px: float,
    grid: int,
) -> NDArray[np.int64]:
    """Finds row · grid + column; −1 outside."""
    column, row = (np.floor((values - edge) / side_px * grid) for values, edge in ((x, left_px), (y, top_px)))
    inside = (column >= 0) & (column < grid) & (row >= 0) & (row < grid)
    cells: NDArray[np.int64] = np.where(inside, row * grid + column, -1).astype(np.int64)
    return cells


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        problem = f"is {found.ndim}-dimensional" if found.ndim != 1 else "holds NaN or infinite values"
        raise DataError(f"`{name}` {problem}; give one finite place for each transcript")
    return found


def _check_sizes(**sizes: float) -> None:
    for name, value in sizes.items():
        if not 0 < value < np.inf:
            raise DataError(f"`{name}` is {value}; give a number above 0")
