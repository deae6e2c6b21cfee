"""Transcripts, some at a time → counts in squares of equal size on a grid over an image: spots where none were measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from ..runtime.extras import require

_ROUNDING = 1e-9
"""Of quotients of lengths, relative to a stride."""
_MAX_GENES = 1 << 20
"""Numbers of genes are below it: square · 2²⁰ + gene is one number, however many genes are still to come."""


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """Squares in rows and columns from the image's top left corner, all of them inside the image.

    A square holds its left and upper edge and not the others, so that squares side by side share no place.

    Attributes:
        side_px: Side of a square in level-0 px.
        stride_px: From one square to the next in level-0 px; below the side they overlap.
        num_columns: Squares in a row.
        num_rows: Rows.
    """

    side_px: float
    stride_px: float
    num_columns: int
    num_rows: int

    @classmethod
    def over(cls, dimensions: tuple[int, int], side_px: float, stride_px: float) -> PatchGrid:
        """Lays as many squares over an image as fit.

        Args:
            dimensions: Width and height of the image in px.
            side_px: Side of a square.
            stride_px: From one square to the next.

        Raises:
            DataError: If none fits, or a size is not above 0.
        """
        for name, value in (("side_px", side_px), ("stride_px", stride_px)):
            if not 0 < value < math.inf:
                raise DataError(f"`{name}` is {value}; give a number above 0")
        # a side of whole px in a measure of µm is so only up to rounding
        columns, rows = (math.floor((length - side_px) / stride_px + _ROUNDING) + 1 for length in dimensions)
        if columns < 1 or rows < 1:
            raise DataError(
                f"a square of {side_px:.1f} px does not fit into the image of {dimensions[0]} × {dimensions[1]} px; give the "
                "whole image, or smaller patches"
            )
        return cls(side_px=side_px, stride_px=stride_px, num_columns=columns, num_rows=rows)

    def locate(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Finds the squares that places lie in.

        Args:
            x: Columns in level-0 px, (places,).
            y: Rows in level-0 px, (places,).

        Returns:
            Number of the place and of the square, row · columns + column, for each pair of which the square holds the
            place.
        """
        places, squares = [], []
        for column, in_column in self._along(x, self.num_columns):
            for row, in_row in self._along(y, self.num_rows):
                inside = np.flatnonzero(in_column & in_row)
                places.append(inside)
                squares.append(row[inside] * self.num_columns + column[inside])
        return np.concatenate(places), np.concatenate(squares)

    def _along(
        self, values: NDArray[np.float64], number: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Finds the squares along one axis: the last that begins before each place, the one before it, and so on."""
        # in units of the stride, where the fraction alone decides: no rounding can put a place between two squares
        position = values / self.stride_px
        last = np.floor(position)
        fraction = position - last
        sides = self.side_px / self.stride_px
        if abs(sides - round(sides)) < _ROUNDING:
            sides = round(sides)
        found = []
        for earlier in range(math.ceil(sides)):
            index = last.astype(np.int64) - earlier
            found.append((index, (index >= 0) & (index < number) & (fraction + earlier < sides)))
        return found

    def centres(self, squares: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the centres of squares in level-0 px, (squares, 2) as x, y."""
        column_row = np.stack([squares % self.num_columns, squares // self.num_columns], axis=1)
        found: NDArray[np.float64] = column_row.astype(np.float64) * self.stride_px + self.side_px / 2
        return found

    def names(self, squares: NDArray[np.int64]) -> tuple[str, ...]:
        """Names squares by their place in the grid, ``XxY`` as spots of Spatial Transcriptomics are."""
        rows, columns = np.divmod(squares, self.num_columns)
        return tuple(f"{x}x{y}" for x, y in zip(columns.tolist(), rows.tolist(), strict=True))


class SquareCounts:
    """Counts of genes in squares, which grow with every batch; memory is that of the counts that are not 0.

    Attributes:
        grid: The squares.
        num_outside: Places in no square.
    """

    def __init__(self, grid: PatchGrid) -> None:
        self.grid = grid
        self.num_outside = 0
        self._keys: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int64]] = []

    def add(self, x: NDArray[np.float64], y: NDArray[np.float64], gene: NDArray[np.int32]) -> None:
        """Counts transcripts.

        Args:
            x: Columns in level-0 px, (transcripts,).
            y: Rows in level-0 px, (transcripts,).
            gene: Number of the gene of each, (transcripts,).

        Raises:
            DataError: If there are more than 2²⁰ genes.
        """
        if len(gene) and int(gene.max()) >= _MAX_GENES:
            raise DataError(
                f"there are more than {_MAX_GENES:,} genes; is feature_name the name of the gene?"
            )
        places, squares = self.grid.locate(x, y)
        met = np.zeros(len(x), bool)
        met[places] = True
        self.num_outside += int((~met).sum())
        keys, counts = np.unique(squares * _MAX_GENES + gene[places], return_counts=True)
        self._keys.append(keys)
        self._counts.append(counts.astype(np.int64))
        # added up when the newest are as many as the oldest, so that each count is moved only now and then
        while len(self._keys) > 1 and 2 * len(self._keys[-1]) >= len(self._keys[-2]):
            self._merge_last()

    def _merge_last(self) -> None:
        keys, where = np.unique(np.concatenate(self._keys[-2:]), return_inverse=True)
        # whole numbers below 2^53, which sums in float64 keep exactly
        counts = np.bincount(where, weights=np.concatenate(self._counts[-2:])).astype(np.int64)
        self._keys[-2:], self._counts[-2:] = [keys], [counts]

    def table(self, num_genes: int) -> tuple[NDArray[np.int64], Any]:
        """Returns what was counted.

        Args:
            num_genes: Number of genes.

        Returns:
            Numbers of the squares that hold something, in rows, and their counts, (squares, genes), SciPy CSR, float64.
        """
        sparse = require("scipy.sparse")
        while len(self._keys) > 1:
            self._merge_last()
        keys = self._keys[0] if self._keys else np.empty(0, np.int64)
        counts = self._counts[0] if self._counts else np.empty(0, np.int64)
        squares, rows = np.unique(keys // _MAX_GENES, return_inverse=True)
        found = sparse.csr_matrix(
            (counts.astype(np.float64), (rows, keys % _MAX_GENES)), shape=(len(squares), num_genes)
        )
        return squares, found
