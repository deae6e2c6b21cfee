"""Counts of small bins on a grid → exact sums over squares of bins."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.extras import require
from ..runtime.read_ahead import read_ahead
from .tenx_matrix import MatrixChunk

_NAME = re.compile(rb"([^\d].*_)(\d+)_(\d+)(-\d+)")


@dataclass(frozen=True, kw_only=True)
class SquareGrid:
    """Squares of bins: square (i, j) holds the bins from row i · stride on, ``side`` of them, and columns likewise.

    It does not hold row i · stride + side, so that neighbours share no bin where the stride is the side.

    Attributes:
        num_rows: Rows of bins.
        num_cols: Columns of bins.
        side: Side of a square in bins.
        stride: Distance of neighbouring squares in bins.
    """

    num_rows: int
    num_cols: int
    side: int
    stride: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of squares; those at the end may reach beyond the bins."""
        return (self.num_rows - 1) // self.stride + 1, (self.num_cols - 1) // self.stride + 1

    def fraction(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Computes the fraction of each square's bins that are marked; bins beyond the end are not.

        Args:
            mask: (num_rows, num_cols).
        """
        found = np.empty(self.shape)
        for row in range(self.shape[0]):
            # a band at a time, beside which nothing as large as the grid is held
            first = row * self.stride
            of_columns = mask[first : first + self.side].sum(axis=0)
            summed = np.concatenate([[0], np.cumsum(of_columns)])
            starts = np.arange(self.shape[1]) * self.stride
            found[row] = summed[np.minimum(starts + self.side, self.num_cols)] - summed[starts]
        return found / self.side**2

    def members(
        self, rows: NDArray[np.integer[Any]], cols: NDArray[np.integer[Any]], number_of: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Finds the squares of bins.

        Args:
            rows: Row of each bin.
            cols: Column of each bin.
            number_of: Number of each square, (rows, columns) of squares; −1 for one that is not wanted.

        Returns:
            Pairs: position of the bin among those given, and number of the square.
        """
        bins, squares = [], []
        # with a stride below the side a bin is in several squares
        reach = range(-(-self.side // self.stride))
        for back_rows in reach:
            i = rows // self.stride - back_rows
            in_row = (i >= 0) & (rows < i * self.stride + self.side)
            for back_cols in reach:
                j = cols // self.stride - back_cols
                inside = np.flatnonzero(in_row & (j >= 0) & (cols < j * self.stride + self.side))
                number = number_of[i[inside], j[inside]]
                bins.append(inside[number >= 0])
                squares.append(number[number >= 0])
        return np.concatenate(bins), np.concatenate(squares)


@dataclass(frozen=True, eq=False, kw_only=True)
class BinSums:
    """Sums over squares, and what they leave out; all exact.

    Attributes:
        values: (squares, features), SciPy CSR, float64.
        num_counts: Counts of genes in the matrix.
        num_outside_tissue: Those of bins outside tissue.
        num_in_no_square: Those of bins in tissue that no square holds: squares with too little tissue, and gaps.
        num_repeated: Bins that occur more than once.
    """

    values: Any
    num_counts: int
    num_outside_tissue: int
    num_in_no_square: int
    num_repeated: int


def sum_bins(
    chunks: Iterable[MatrixChunk],
    place: Callable[[NDArray[np.bytes_]], tuple[NDArray[np.int64], NDArray[np.int64]]],
    in_tissue: NDArray[np.bool_],
    grid: SquareGrid,
    number_of: NDArray[np.int32],
    is_gene: NDArray[np.bool_],
) -> BinSums:
    """Sums the counts of bins in tissue over squares, by products of sparse matrices.

    Memory holds a chunk and the sums, and never a matrix of bins: each chunk is multiplied by the 0 and 1 that say which
    square a bin is in.

    Args:
        chunks: Counts of bins.
        place: Barcodes → row and column of each bin.
        in_tissue: Whether a bin is in tissue, (rows, columns).
        grid: The squares.
        number_of: Number of each square, −1 for one that is not wanted.
        is_gene: Which features are genes, (features,); what is left out is counted of these.
    """
    sparse = require("scipy.sparse")
    num_squares = int(number_of.max()) + 1
    parts = [sparse.csr_matrix((num_squares, len(is_gene)))]
    everything = outside = in_no_square = 0
    seen, num_bins = np.zeros(in_tissue.shape, dtype=bool), 0
    # HDF5 unpacks the next chunk while this one is summed
    for chunk in read_ahead(chunks):
        rows, cols = place(chunk.barcodes)
        seen[rows, cols] = True
        num_bins += len(rows)
        is_inside = in_tissue[rows, cols]
        kept = np.flatnonzero(is_inside)
        bins, squares = grid.members(rows[kept], cols[kept], number_of)
        is_summed = np.zeros(len(kept), dtype=bool)
        is_summed[bins] = True
        everything += _num_counts(chunk.values, is_gene)
        outside += _num_counts(chunk.values[~is_inside], is_gene)
        in_no_square += _num_counts(chunk.values[kept[~is_summed]], is_gene)
        membership = sparse.csr_matrix(
            # float64 is exact to 2^53, where 32 bits would overflow
            (np.ones(len(bins)), (squares, kept[bins])),
            shape=(num_squares, len(rows)),
        )
        part = membership @ chunk.values
        # in the order of features SciPy adds them fast; there and back takes less time than sorting
        part = part.tocsc().tocsr()
        # small sums are added to small ones, so that the largest is not copied for each chunk
        while parts and parts[-1].nnz <= 2 * part.nnz:
            part = parts.pop() + part
        parts.append(part)
    total = parts.pop()
    while parts:
        total = parts.pop() + total
    return BinSums(
        values=total,
        num_counts=everything,
        num_outside_tissue=outside,
        num_in_no_square=in_no_square,
        num_repeated=num_bins - np.count_nonzero(seen),
    )


def _num_counts(values: Any, is_gene: NDArray[np.bool_]) -> int:
    """Adds the counts of genes up, exactly."""
    return round(values.data.sum(dtype=np.float64, where=True if is_gene.all() else is_gene[values.indices]))


@dataclass(frozen=True, kw_only=True)
class BinNames:
    """How names of bins are spelled, such as ``s_008um_00012_00345-1``: row and column, always as many digits.

    Attributes:
        pattern: The name, with 0 for every digit of row and column.
        rows: Where the digits of the row begin and end.
        cols: Where those of the column do.
    """

    pattern: bytes
    rows: tuple[int, int]
    cols: tuple[int, int]

    @staticmethod
    def of(example: bytes) -> BinNames | None:
        """Reads the spelling off one name; None if it names no row and column."""
        match = _NAME.fullmatch(example)
        if match is None:
            return None
        before, row, col, after = match.groups()
        return BinNames(
            pattern=before + b"0" * len(row) + b"_" + b"0" * len(col) + after,
            rows=match.span(2),
            cols=match.span(3),
        )

    def places(self, barcodes: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Reads row and column off names, without an object for each; None if one is spelled otherwise."""
        length = len(self.pattern)
        if barcodes.dtype.itemsize != length or not len(barcodes):
            return None
        # (length, bins), so that each place of the name is compared in one piece of memory
        letters = np.ascontiguousarray(np.ascontiguousarray(barcodes).view(np.uint8).reshape(-1, length).T)
        digits = {*range(*self.rows), *range(*self.cols)}
        for index, letter in enumerate(self.pattern):
            if index not in digits and (letters[index] != letter).any():
                return None
        found = []
        for begin, end in (self.rows, self.cols):
            value = np.zeros(len(barcodes), dtype=np.int64)
            for index in range(begin, end):
                # below "0" wraps around to above 9
                digit = letters[index] - np.uint8(ord("0"))
                if (digit > 9).any():
                    return None
                value = value * 10 + digit
            found.append(value)
        return found[0], found[1]
