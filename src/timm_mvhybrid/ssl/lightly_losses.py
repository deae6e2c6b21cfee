"""lightly's losses as plain cross-entropies: the targets come centred, so that lightly's own centres stay out.

lightly's patch centre turns NaN where nothing is masked, and neither centre counts rows over uneven processes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..runtime.errors import PretrainError

try:
    from lightly.loss.dino_loss import DINOLoss
    from lightly.loss.ibot_loss import IBOTPatchLoss
    from lightly.loss.koleo_loss import KoLeoLoss
    from lightly.models.modules.center import Center
except ImportError as error:
    raise PretrainError(
        f"pretraining needs lightly's losses ({error}); pip install 'timm-mvhybrid[pretrain]'"
    ) from error

__all__ = ["ClassTokenLoss", "KoLeoLoss", "PatchTokenLoss"]


class ClassTokenLoss(DINOLoss):
    """Cross-entropies between views, averaged over images; takes log targets up to a constant a row.

    Args:
        student_temperature: The student's temperature.
    """

    def __init__(self, student_temperature: float) -> None:
        # a centre of one zero, which broadcasts
        super().__init__(output_dim=1, student_temp=student_temperature)

    def update_center(self, teacher_out: Tensor) -> None:
        """Leaves the centre at zero."""

    def cross_views(self, targets: list[Tensor], scores: list[Tensor]) -> Tensor:
        """Sums the cross-entropies of the pairs (i, j) of views, (B, K) each, with i ≠ j; 0 where there is none."""
        num_pairs = len(targets) * len(scores) - min(len(targets), len(scores))
        if num_pairs == 0:
            return torch.zeros((), dtype=targets[0].dtype, device=targets[0].device)
        return num_pairs * cast(Tensor, self(targets, scores, teacher_temp=1.0))

    def all_views(self, targets: list[Tensor], scores: list[Tensor]) -> Tensor:
        """Sums the cross-entropies of all pairs.

        lightly leaves the pairs (i, i) out as the same crop; with two targets swapped, they are the others.
        """
        first, second = targets
        return self.cross_views([first, second], scores) + self.cross_views([second, first], scores[:2])


class PatchTokenLoss(IBOTPatchLoss):
    """Cross-entropies of masked patches; takes log targets up to a constant a row.

    Each image counts as much as any other, however many of its patches are masked.

    Args:
        student_temperature: The student's temperature.
    """

    def __init__(self, student_temperature: float) -> None:
        super().__init__(output_dim=1, student_temp=student_temperature)
        self.center = _NoCenter(size=(1, 1))

    def masked_patches(self, targets: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        """Averages over images the mean cross-entropy of their masked patches.

        Targets and scores are (M, K), rows in the order of the mask, (images, patches), which is True M times. The loss
        is 0 where nothing is masked.
        """
        return cast(Tensor, self(targets, scores, mask.unsqueeze(1), teacher_temp=1.0))


class _NoCenter(Center):
    def update(self, x: Tensor) -> None:
        """Leaves the centre at zero."""
