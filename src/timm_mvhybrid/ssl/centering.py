"""Keeps the teacher from always choosing the same prototypes: by a centre, or by targets balanced by Sinkhorn-Knopp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .collectives import logsumexp_over_ranks, sum_over_ranks
from .prototype_scores import PrototypeScores


@torch.no_grad()
def column_potentials(
    scores: PrototypeScores, temperature: float, *, num_iterations: int = 3, group: Any = None
) -> Tensor:
    """Computes what to take from each prototype's score so that all prototypes are equally likely targets.

    Sinkhorn-Knopp scales rows and columns of exp(x / T) in turn. Its result is softmax(x / T − v) over the prototypes,
    where v_k = log Σ_i exp(x_ik / T − u_i) and u_i = log Σ_k exp(x_ik / T − v_k), from u = 0. A row takes part whatever
    process it lives on; processes may have different numbers of rows, or none. Only v is communicated.

    Source: SwAV (arXiv 2006.09882), section 3.1; DINOv2 (arXiv 2304.07193), section 4. Theirs works on exp(x / T),
    which overflows for x / T above 88 in float32.

    Args:
        scores: x, the teacher's scores of this process.
        temperature: T.
        num_iterations: Times that columns and rows are scaled.
        group: Process group; None for the default one.

    Returns:
        v, (K,), in the scores' dtype; zeros where no process has a row.
    """
    potentials: Tensor | None = None
    for _ in range(num_iterations):
        columns = torch.full(
            (scores.num_prototypes,), -torch.inf, dtype=scores.dtype, device=scores.rows.device
        )
        for x in scores.chunks(temperature):
            if potentials is not None:
                x -= torch.logsumexp(x - potentials, dim=1, keepdim=True)
            columns = torch.logaddexp(columns, torch.logsumexp(x, dim=0))
        columns = logsumexp_over_ranks(columns, group)
        # no row anywhere: nothing to balance
        potentials = torch.where(columns.isneginf(), torch.zeros_like(columns), columns)
    if potentials is None:
        return torch.zeros(scores.num_prototypes, dtype=scores.dtype, device=scores.rows.device)
    return potentials


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
        """Computes v, (K,), from the centre as it stands."""
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
