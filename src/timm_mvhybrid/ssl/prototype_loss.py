"""Masked patches against the teacher's targets, without ever holding all scores of all patches.

65,536 prototypes times the masked patches of 64 images are 1.28 GB for each tensor that has both sizes, and
a loss on whole scores needs several. Here a slice of the rows goes through product, softmax, loss and gradient before
the next one starts; what is kept is as large as the features and the prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops.precision import accumulation_dtype, autocast_disabled
from .prototype_scores import PrototypeScores, product_dtype


@dataclass(frozen=True, kw_only=True)
class PatchTargets:
    """What the student shall predict for its masked patches: softmax(scores / temperature − offset), row by row.

    A plain object, so that FSDP does not cast what is in it.

    Attributes:
        scores: The teacher's scores of the masked patches.
        temperature: Its temperature.
        offset: (K,), from Sinkhorn-Knopp or the running mean.
        row_weights: (M,), what each patch's cross-entropy counts.
        student_temperature: The student's temperature.
    """

    scores: PrototypeScores
    temperature: float
    offset: Tensor
    row_weights: Tensor
    student_temperature: float

    def probabilities(self, rows: slice) -> Tensor:
        """Computes the targets of some rows.

        Returns:
            (rows, K).
        """
        return torch.softmax(self.scores.scores(rows, self.temperature).sub_(self.offset), dim=1)


def prototype_cross_entropy(features: Tensor, prototypes: Tensor, targets: PatchTargets) -> Tensor:
    """Computes Σ_i w_i H(target_i, softmax(W z_i / τ)) and its gradients, a slice of rows at a time.

    The gradients are computed along with the loss, so that nothing is computed twice; they cannot be differentiated
    again. Products are in autocast's dtype where it is on; all else, and sums over slices, in float32 (float64 for
    float64).

    Args:
        features: z, the student's masked patches, (M, d).
        prototypes: W, the student's, (K, d).
        targets: The teacher's; their weights w and student temperature τ.

    Returns:
        The loss, a scalar; 0 where there is no row.
    """
    return _PrototypeCrossEntropy.apply(features, prototypes, targets)


class _PrototypeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor, targets: PatchTargets) -> Tensor:
        narrow, wide = product_dtype(features), accumulation_dtype(features.dtype)
        ctx.dtypes = features.dtype, prototypes.dtype
        ctx.set_materialize_grads(False)
        with_rows, with_prototypes = ctx.needs_input_grad[:2]
        row_gradient = torch.empty_like(features, dtype=wide) if with_rows else None
        prototype_gradient = torch.zeros_like(prototypes, dtype=wide) if with_prototypes else None
        loss = torch.zeros((), dtype=wide, device=features.device)
        with autocast_disabled(features.device.type):
            weight = prototypes.to(narrow)
            for rows in targets.scores.slices():
                z = features[rows].to(narrow)
                row_weights = targets.row_weights[rows].to(wide)
                p = targets.probabilities(rows)
                scores = (z @ weight.T).to(wide).div_(targets.student_temperature)
                log_q = torch.log_softmax(scores, dim=1)
                del scores
                # a product of rows, which makes no third (rows, K)
                entropies = torch.bmm(p.unsqueeze(1), log_q.unsqueeze(2)).flatten()
                loss -= torch.dot(entropies, row_weights)
                difference = log_q.exp_().sub_(p).to(narrow)
                del p, log_q
                # the weights go to the narrow side: times them, float16 would lose the small probabilities
                factors = (row_weights / targets.student_temperature).unsqueeze(1)
                if row_gradient is not None:
                    row_gradient[rows] = (difference @ weight).to(wide) * factors
                if prototype_gradient is not None:
                    scaled = (features[rows].to(wide) * factors).to(narrow)
                    prototype_gradient += difference.T @ scaled
        ctx.save_for_backward(row_gradient, prototype_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if gradient is None:
            return None, None, None
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        row, prototype = (None if x is None else (gradient * x).to(dtype) for x, dtype in saved)
        return row, prototype, None
