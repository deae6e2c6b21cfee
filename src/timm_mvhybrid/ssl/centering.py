"""Keeps the teacher from always choosing the same prototypes: what to take from each prototype's score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .collectives import sum_over_ranks
from .prototype_scores import PrototypeScores
from .sinkhorn import column_potentials


class SinkhornKnopp(nn.Module):
    """Balances the prototypes within the batch; has no state.

    Args:
        num_iterations: Iterations of Sinkhorn-Knopp.
        group: Process group; None for the default one.
    """

    def __init__(self, num_iterations: int = 3, group: Any = None) -> None:
        super().__init__()
        self.num_iterations, self.group = num_iterations, group

    def forward(self, scores: PrototypeScores, temperature: float) -> Tensor:
        """Computes v, (K,), so that the targets are softmax(scores / temperature − v)."""
        return column_potentials(scores, temperature, num_iterations=self.num_iterations, group=self.group)


class RunningMean(nn.Module):
    """Takes the prototypes' mean scores of earlier batches, c, from the scores.

    c starts at 0 and becomes m c + (1 − m) mean once it was used. The mean is over the rows of all processes; DINOv2's
    code averages the means of the processes instead, which differs where they have different numbers of masked
    patches. A batch without a row leaves c as it is.

    Source: DINO (arXiv 2104.14294), equation 4.

    Args:
        num_prototypes: K.
        momentum: m.
        group: Process group; None for the default one.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9, group: Any = None) -> None:
        super().__init__()
        self.momentum, self.group = momentum, group
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, scores: PrototypeScores, temperature: float) -> Tensor:
        """Computes v, (K,), so that the targets are softmax(scores / temperature − v); then updates the centre."""
        offset = self.offset(temperature, scores.dtype)
        self.update(scores)
        return offset

    def offset(self, temperature: float, dtype: torch.dtype) -> Tensor:
        """Computes v from the centre as it stands.

        Returns:
            (K,).
        """
        return self.center.to(dtype) / temperature

    @torch.no_grad()
    def update(self, scores: PrototypeScores) -> None:
        """Moves the centre towards a batch's mean."""
        if self.center.dtype != scores.dtype and scores.dtype == torch.float64:
            self.center = self.center.double()
        count = torch.full((1,), scores.num_rows, dtype=scores.dtype, device=self.center.device)
        totals = sum_over_ranks(torch.cat([scores.column_sums(), count]), self.group)
        mean = totals[:-1] / totals[-1:].clamp(min=1)
        moved = torch.lerp(mean.to(self.center.dtype), self.center, self.momentum)
        self.center.copy_(torch.where(totals[-1:] > 0, moved, self.center))
