"""Teacher scores → balanced targets by Sinkhorn-Knopp, in the logarithmic domain and exact over any processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .collectives import logsumexp_over_ranks
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
