"""Crops of a batch, student and teacher → the loss and what is watched of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .losses import DINOv2Loss
from .masking import MaskedPatches
from .prototype_scores import PrototypeScores
from .student_teacher import NetworkOutput


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of a backward pass.

    Attributes:
        parts: ``dino_local``, ``dino_global``, the regulariser's name, ``ibot`` and ``total``; scalars of this process,
            ``total`` to be differentiated.
        class_targets: What softmax turns into the teacher's targets of the class tokens, (2B, K); no gradient.
        teacher_features: The teacher's class features of the global crops, (2B, D); no gradient.
        student_output: All that the student computed.
    """

    parts: dict[str, Tensor]
    class_targets: Tensor
    teacher_features: Tensor
    student_output: NetworkOutput

    @property
    def student_features(self) -> Tensor:
        """The student's class features of the global crops, (2B, D); no gradient."""
        return self.student_output.class_features.detach()

    @property
    def total(self) -> Tensor:
        """The part to differentiate."""
        return self.parts["total"]

    def teacher_probabilities(self) -> Tensor:
        """Computes the teacher's targets of the class tokens, (2B, K); rows sum to 1."""
        return torch.softmax(self.class_targets, dim=1)


def compute_losses(
    student: nn.Module,
    teacher: nn.Module,
    criterion: DINOv2Loss,
    global_crops: Tensor,
    local_crops: Tensor,
    mask: Tensor | None,
    teacher_temp: float,
    **inputs: Any,
) -> Losses:
    """Runs teacher and student and compares them.

    Both may be sharded: only their ``forward`` is called, once each, and every parameter takes part whatever is masked,
    so that processes stay in step. Masked patches are compared ``criterion.ibot_chunk_rows`` at a time.

    Args:
        student: A :class:`~timm_mvhybrid.ssl.student_teacher.Network`, or what wraps one.
        teacher: Likewise.
        criterion: The loss; its running mean, if any, is updated.
        global_crops: (2B, 3, G, G), normalised, crop by crop.
        local_crops: (L·B, 3, l, l), likewise; may have no rows.
        mask: True where a patch of a global crop is hidden from the student, bool, (2B, N). On the CPU it costs no
            synchronisation with a GPU. None for class tokens alone.
        teacher_temp: Temperature of the teacher.
        **inputs: Further arguments of the student's forward, for what a recipe learns besides.
    """
    masked = None if mask is None else MaskedPatches.of(mask, global_crops.device)
    chunk_rows = criterion.ibot_chunk_rows
    with torch.no_grad():
        taught: NetworkOutput = teacher(global_crops, masked=masked, factored=chunk_rows > 0)
    class_targets = criterion.class_targets(taught.class_scores, teacher_temp)
    patch_targets = None
    if masked is not None and taught.patch_factors is not None:
        rows, prototypes = taught.patch_factors
        scores = PrototypeScores(rows=rows, prototypes=prototypes, chunk_rows=chunk_rows)
        patch_targets = criterion.patch_targets(scores, masked, teacher_temp)
    found: NetworkOutput = student(
        global_crops, local_crops, masked=masked, hide=True, targets=patch_targets, **inputs
    )
    ibot = found.patch_loss
    if masked is not None and ibot is None:
        assert taught.patch_scores is not None
        assert found.patch_scores is not None
        ibot = criterion.patch_loss(taught.patch_scores, found.patch_scores, masked.mask, teacher_temp)
    global_scores, local_scores = found.class_scores.tensor_split([len(found.class_features)])
    parts = criterion.combine(class_targets, global_scores, local_scores, found.class_features, ibot)
    return Losses(
        parts=parts,
        class_targets=class_targets,
        teacher_features=taught.class_features,
        student_output=found,
    )
