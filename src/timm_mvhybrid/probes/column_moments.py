"""Mean and deviation of columns over many rows, in float64 and without cancellation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# numbers of a block of rows: 32 MB of float64
_BLOCK = 2**22


@dataclass(frozen=True, eq=False, kw_only=True)
class ColumnMoments:
    """Means and deviations by which columns are standardised.

    Attributes:
        mean: (columns,).
        std: Population standard deviation, (columns,); exactly 0 for a constant column, whatever its value.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @staticmethod
    def of(tables: Sequence[NDArray[Any]]) -> ColumnMoments:
        """Computes them over the rows of several tables.

        Two passes over differences, first from a row and then from the mean: with N rows and a unit roundoff u of
        2^-53, the mean is off by at most about N u times the largest difference from that row, and the square of that
        enters the variance. A float32 sum is off by N 2^-24 times the values themselves: at a mean of 30, a deviation of
        1 and 3 million rows, by half a deviation.

        Args:
            tables: (rows, columns) each, one row at least; read in blocks, never joined.
        """
        num_rows = sum(map(len, tables))
        first = tables[0][0].astype(np.float64)
        mean = first + sum(block.sum(axis=0) for block in _differences(tables, first)) / num_rows
        squares = sum(np.square(block).sum(axis=0) for block in _differences(tables, mean))
        return ColumnMoments(mean=mean, std=np.sqrt(squares / num_rows))

    def standardise(self, table: NDArray[Any]) -> NDArray[np.float32]:
        """Subtracts the means and divides by the deviations; constant columns are not divided.

        Args:
            table: (rows, columns).

        Returns:
            (rows, columns) float32, computed in float64.
        """
        scale = np.where(self.std == 0, 1.0, self.std)
        standard = np.empty(table.shape, dtype=np.float32)
        start = 0
        for block in _differences([table], self.mean):
            standard[start : start + len(block)] = block / scale
            start += len(block)
        return standard


def _differences(
    tables: Sequence[NDArray[Any]], origin: NDArray[np.float64]
) -> Iterator[NDArray[np.float64]]:
    step = max(1, _BLOCK // len(origin))
    for table in tables:
        for start in range(0, len(table), step):
            yield table[start : start + step].astype(np.float64) - origin
