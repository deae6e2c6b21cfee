"""The products of features and prototypes, whole or row by row: (rows, prototypes) that need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.precision import accumulation_dtype, at_least_float32, autocast_disabled


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which autocast, if it is on, would multiply a tensor."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(device)


@dataclass(frozen=True, kw_only=True)
class PrototypeScores:
    """Scores of rows for prototypes, in float32 (float64 for float64).

    A plain object, not a tuple or a dictionary: FSDP casts tensors that it finds in a forward's arguments.

    Attributes:
        rows: Scores (M, K), or features (M, d) where ``prototypes`` are given.
        prototypes: (K, d), or None.
        chunk_rows: Rows computed at a time; 0 for all.
    """

    rows: Tensor
    prototypes: Tensor | None = None
    chunk_rows: int = 0

    @property
    def num_rows(self) -> int:
        """M."""
        return self.rows.shape[0]

    @property
    def num_prototypes(self) -> int:
        """K."""
        return (self.rows.shape[1:] if self.prototypes is None else self.prototypes.shape[:1]).numel()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the scores."""
        return accumulation_dtype(self.rows.dtype)

    def slices(self) -> list[slice]:
        """Divides the rows; no slice is empty."""
        step = self.chunk_rows or max(self.num_rows, 1)
        return [slice(first, min(first + step, self.num_rows)) for first in range(0, self.num_rows, step)]

    def scores(self, rows: slice, divisor: float = 1.0) -> Tensor:
        """Computes the scores of some rows, divided by a temperature.

        Returns:
            (rows, K), the caller's to change.
        """
        if self.prototypes is None:
            return at_least_float32(self.rows[rows]) / divisor
        with autocast_disabled(self.rows.device.type):
            return at_least_float32(F.linear(self.rows[rows], self.prototypes)).div_(divisor)

    def chunks(self, divisor: float = 1.0) -> Iterator[Tensor]:
        """Yields the scores slice by slice.

        Yields:
            (rows, K), the caller's to change.
        """
        for rows in self.slices():
            yield self.scores(rows, divisor)

    def column_sums(self) -> Tensor:
        """Sums the scores of each prototype over the rows; (K,)."""
        if self.prototypes is None:
            return at_least_float32(self.rows).sum(dim=0)
        # the sum of products is the product of the sum
        with autocast_disabled(self.rows.device.type):
            return at_least_float32(self.prototypes) @ at_least_float32(self.rows).sum(dim=0)
