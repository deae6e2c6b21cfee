"""Sparse rows → ranks of their values, those that are not stored (zeros) included, with the size of each tied block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.extras import require


@dataclass(frozen=True, eq=False, kw_only=True)
class TiedRanks:
    """Ranks within each row, for every value that is stored.

    Over all orders of the values of a tied block, each takes each rank of the block equally often.

    Attributes:
        chunk: The values, (rows, columns), CSR without stored zeros.
        before: Values of its row that are higher, (stored,).
        block: Values of its row that are equal, itself among them, (stored,).
        before_zeros: Values above 0 of each row, (rows,).
        num_zeros: Zeros of each row, (rows,).
    """

    chunk: Any
    before: NDArray[np.float64]
    block: NDArray[np.float64]
    before_zeros: NDArray[np.float64]
    num_zeros: NDArray[np.float64]

    @staticmethod
    def of(chunk: Any) -> TiedRanks:
        """Ranks the values of each row.

        Args:
            chunk: CSR without stored zeros.

        Returns:
            The ranks.
        """
        lengths = np.diff(chunk.indptr)
        row = np.repeat(np.arange(len(lengths)), lengths)
        # rows stay where they are; within each, the highest value comes first
        order = np.lexsort((-chunk.data, row))
        ordered = chunk.data[order]
        starts_block = np.ones(len(ordered), dtype=np.bool_)
        starts_block[1:] = (ordered[1:] != ordered[:-1]) | (row[1:] != row[:-1])
        first = np.flatnonzero(starts_block)
        number = np.cumsum(starts_block) - 1
        sizes = np.diff(first, append=len(ordered))
        num_zeros = chunk.shape[1] - lengths
        before, block = np.empty(len(ordered)), np.empty(len(ordered))
        # the zeros lie before the values below 0
        before[order] = (first - chunk.indptr[row[first]] + num_zeros[row[first]] * (ordered[first] < 0))[
            number
        ]
        block[order] = sizes[number]
        return TiedRanks(
            chunk=chunk,
            before=before,
            block=block,
            before_zeros=np.bincount(row, chunk.data > 0, len(lengths)).astype(np.float64),
            num_zeros=num_zeros.astype(np.float64),
        )

    @property
    def ascending(self) -> NDArray[np.float64]:
        """Mean rank of each stored value, the lowest of a row being 1, (stored,)."""
        columns = self.chunk.shape[1]
        mean: NDArray[np.float64] = columns - self.before - (self.block - 1) / 2
        return mean

    @property
    def ascending_of_zeros(self) -> NDArray[np.float64]:
        """Mean rank of the zeros of each row, (rows,); of no meaning where there are none."""
        mean: NDArray[np.float64] = self.chunk.shape[1] - self.before_zeros - (self.num_zeros - 1) / 2
        return mean

    def set_sums(
        self,
        values: NDArray[np.float64],
        of_zeros: NDArray[np.float64],
        membership: Any,
        sizes: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Sums a function of the ranks over the columns of each set, the zeros among them included.

        Args:
            values: Of each stored value, (stored,).
            of_zeros: Of each zero of a row, (rows,).
            membership: 1 where a column belongs to a set, (columns, sets), CSR.
            sizes: Columns of each set, (sets,).

        Returns:
            (rows, sets).
        """
        rise = values - np.repeat(of_zeros, np.diff(self.chunk.indptr))
        # most values of AUCell lie below the top and add nothing
        kept = rise != 0
        starts = np.concatenate([[0], np.cumsum(kept)])[self.chunk.indptr]
        matrix = require("scipy.sparse").csr_matrix(
            (rise[kept], self.chunk.indices[kept], starts), shape=self.chunk.shape
        )
        sums: NDArray[np.float64] = (matrix @ membership).toarray() + of_zeros[:, None] * sizes
        return sums
