"""Counts → log1p CPM, a few thousand values at a time; mean and deviation of genes over training spots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import DataError
from ..runtime.extras import require

CPM = 1e6
"""What the counts of a spot sum to after normalisation."""

# values of a chunk: what is made of it stays small beside the counts, and in the processor's cache
_CHUNK_VALUES = 1 << 17


@dataclass(frozen=True, eq=False, kw_only=True)
class GeneStatistics:
    """Mean and deviation of log1p CPM by gene.

    Attributes:
        mean: (genes,).
        std: Population deviation, (genes,); 0 for a gene that does not vary.
        num_spots: Spots they are taken over, those without counts left out.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    num_spots: int


def counts_matrix(counts: Any) -> Any:
    """Takes counts as they are, dense or sparse, and refuses what is not a table of numbers.

    Args:
        counts: (spots, genes); NumPy, or SciPy sparse, of which CSR needs no copy.

    Returns:
        A NumPy array or a CSR matrix.

    Raises:
        DataError: If it is neither, or has no spot or gene.
    """
    sparse = require("scipy.sparse")
    matrix = counts.tocsr() if sparse.issparse(counts) else np.asarray(counts)
    if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
        raise DataError(
            f"`counts` is {matrix.ndim}-dimensional {matrix.dtype}; give a table of numbers (spots, genes)"
        )
    if 0 in matrix.shape:
        raise DataError(f"`counts` has the shape {matrix.shape}; give at least one spot and one gene")
    return matrix


def row_chunks(matrix: Any, *, raw: bool) -> Iterator[tuple[slice, Any]]:
    """Cuts counts into groups of spots, each checked and in float64.

    Args:
        matrix: Of ``counts_matrix``; it is not changed.
        raw: Whether values must be counts; otherwise any number will do, such as where their order alone matters.

    Yields:
        The spots, and their values as CSR without stored zeros.

    Raises:
        DataError: If a value is not finite or, where it must be a count, negative or not whole.
    """
    sparse = require("scipy.sparse")
    num_spots = matrix.shape[0]
    stored = matrix.nnz if sparse.issparse(matrix) else matrix.size
    step = max(1, int(_CHUNK_VALUES * num_spots / max(stored, 1)))
    for start in range(0, num_spots, step):
        spots = slice(start, min(start + step, num_spots))
        chunk = _rows(matrix, spots)
        _check_values(chunk, start, raw)
        if (chunk.data == 0).any():
            # the indices are the caller's own
            chunk = chunk.copy()
            chunk.eliminate_zeros()
        yield spots, chunk


def _rows(matrix: Any, spots: slice) -> Any:
    """Takes rows in float64; of canonical CSR only the values are copied."""
    sparse = require("scipy.sparse")
    if not sparse.issparse(matrix):
        return sparse.csr_matrix(matrix[spots], dtype=np.float64)
    if not matrix.has_canonical_format:
        chunk = sparse.csr_matrix(matrix[spots], dtype=np.float64)
        chunk.sum_duplicates()
        return chunk
    begin, end = (int(place) for place in matrix.indptr[[spots.start, spots.stop]])
    starts = matrix.indptr[spots.start : spots.stop + 1] - begin
    data = matrix.data[begin:end].astype(np.float64)
    return sparse.csr_matrix(
        (data, matrix.indices[begin:end], starts), shape=(len(starts) - 1, matrix.shape[1]), copy=False
    )


def _check_values(chunk: Any, start: int, raw: bool) -> None:
    data = chunk.data
    if raw:
        if not len(data) or ((np.rint(data) == data).all() and data.min() >= 0 and data.max() < np.inf):
            return
        wrong = ~(np.isfinite(data) & (data >= 0) & (data == np.rint(data)))
        kind = "count; give raw counts, or `normalise=False` if they are normalised already"
    else:
        wrong = ~np.isfinite(data)
        if not wrong.any():
            return
        kind = "finite number; repair the table"
    first = int(wrong.argmax())
    row = int(np.searchsorted(chunk.indptr, first, side="right")) - 1
    raise DataError(
        f"`counts` holds {data[first]} at spot {start + row}, gene {chunk.indices[first]}, which is not a {kind}"
    )


def log1p_cpm(chunk: Any, genes: NDArray[np.bool_] | None = None) -> Any:
    """Normalises each spot to a million counts and takes log(1 + x), in place.

    Args:
        chunk: Of ``row_chunks``.
        genes: Genes to keep after normalisation, (genes,); None keeps all.

    Returns:
        The same matrix, or one of those genes' values alone; spots without counts stay empty.
    """
    lengths = np.diff(chunk.indptr)
    totals = np.zeros(len(lengths))
    some = lengths > 0
    if some.any():
        # of rows with values alone: reduceat gives an empty stretch the value behind it
        totals[some] = np.add.reduceat(chunk.data, chunk.indptr[:-1][some])
    factors = np.divide(CPM, totals, out=np.zeros_like(totals), where=totals > 0)
    if genes is not None:
        chunk = keep_genes(chunk, genes)
    data = chunk.data
    data *= np.repeat(factors, np.diff(chunk.indptr))
    np.log1p(data, out=data)
    return chunk


def keep_genes(chunk: Any, genes: NDArray[np.bool_]) -> Any:
    """Drops the values of other genes, whose columns stay.

    Args:
        chunk: CSR.
        genes: Genes to keep, (genes,).

    Returns:
        CSR of the same shape.
    """
    places = np.flatnonzero(genes.take(chunk.indices))
    starts = np.searchsorted(places, chunk.indptr).astype(chunk.indptr.dtype)
    return require("scipy.sparse").csr_matrix(
        (chunk.data.take(places), chunk.indices.take(places), starts), shape=chunk.shape, copy=False
    )


def training_spots(train: ArrayLike | None, num_spots: int) -> NDArray[np.bool_]:
    """Checks which spots are for training.

    Args:
        train: True for each, or their indices; None takes all.
        num_spots: Number of spots.

    Returns:
        (spots,) bool.

    Raises:
        DataError: If it is neither, of another length, out of range, repeated or empty.
    """
    if train is None:
        return np.ones(num_spots, dtype=np.bool_)
    given = np.asarray(train)
    if given.dtype == np.bool_:
        if given.shape != (num_spots,):
            raise DataError(
                f"`train` has the shape {given.shape} for {num_spots} spots; give one bool a spot"
            )
        mask = given.copy()
    elif given.ndim == 1 and given.dtype.kind in "iu":
        if len(given) and (given.min() < 0 or given.max() >= num_spots):
            raise DataError(
                f"`train` holds indices from {given.min()} to {given.max()} for {num_spots} spots"
            )
        if len(np.unique(given)) < len(given):
            raise DataError("`train` names a spot twice; give each index once, or a mask of type bool")
        mask = np.zeros(num_spots, dtype=np.bool_)
        mask[given] = True
    else:
        raise DataError(f"`train` is {given.ndim}-dimensional {given.dtype}; give a bool or index array")
    if not mask.any():
        raise DataError("`train` names no spot; give the spots that the model is fitted on")
    return mask


def fit_gene_statistics(
    counts: Any, *, train: ArrayLike | None = None, normalise: bool = True
) -> GeneStatistics:
    """Computes mean and population deviation of log1p CPM, gene by gene, over training spots that have counts.

    A deviation below what a float64 sum over these spots resolves is 0: the gene is constant.

    Args:
        counts: Raw counts, (spots, genes); NumPy or SciPy sparse. Sparse ones are never made dense.
        train: True for each spot to take, or their indices; None takes all.
        normalise: Whether to take log1p CPM; otherwise the values are taken as they are.

    Returns:
        The statistics, to score other spots of the same genes by.

    Raises:
        DataError: If values are not counts, ``train`` does not fit, or fewer than two spots with counts are left.
    """
    matrix = counts_matrix(counts)
    mask = training_spots(train, matrix.shape[0])
    num_genes = matrix.shape[1]
    # around a mean of the first spots, because the difference of two large sums would lose the digits of genes that vary
    # little
    centre: NDArray[np.float64] | None = None
    num_spots, sums, squares, present = 0, *(np.zeros(num_genes) for _ in range(3))
    for chunk in _normalised(matrix, mask, normalise):
        number = int((np.diff(chunk.indptr) > 0).sum())
        total = _column_sums(chunk, chunk.data)
        centre = total / max(number, 1) if centre is None else centre
        num_spots += number
        sums += total
        present += _column_sums(chunk, np.ones_like(chunk.data))
        distance = chunk.data
        distance -= centre.take(chunk.indices)
        distance *= distance
        squares += _column_sums(chunk, distance)
    if num_spots < 2 or centre is None:
        raise DataError(
            f"{num_spots} training spots have counts; mean and deviation of genes take at least two: give more in `train`"
        )
    mean = sums / num_spots
    squares += (num_spots - present) * centre**2
    std = np.sqrt(np.maximum(squares / num_spots - (mean - centre) ** 2, 0.0))
    std[std <= num_spots * np.finfo(np.float64).eps * np.abs(mean)] = 0.0
    return GeneStatistics(mean=mean, std=std, num_spots=num_spots)


def _column_sums(chunk: Any, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums values over the rows of a chunk that they stand in the places of."""
    rows, columns = chunk.shape
    turned = require("scipy.sparse").csc_matrix(
        (values, chunk.indices, chunk.indptr), shape=(columns, rows), copy=False
    )
    sums: NDArray[np.float64] = turned @ np.ones(rows)
    return sums


def _normalised(matrix: Any, mask: NDArray[np.bool_], normalise: bool) -> Iterator[Any]:
    """Yields the training spots in chunks."""
    for spots, chunk in row_chunks(matrix, raw=normalise):
        kept = mask[spots]
        if kept.any():
            taken = chunk if kept.all() else chunk[np.flatnonzero(kept)]
            yield log1p_cpm(taken) if normalise else taken


def names_of(genes: Sequence[str], num_columns: int) -> list[str]:
    """Checks that there is a name for each column.

    Args:
        genes: The names.
        num_columns: Columns of the counts.

    Returns:
        The names as texts.

    Raises:
        DataError: If their number is another.
    """
    if len(genes) != num_columns:
        raise DataError(
            f"`genes` has {len(genes)} names for {num_columns} columns of `counts`; give one a column"
        )
    return [str(gene) for gene in genes]
