"""Scores and features of student and teacher → the parts of DINOv2's loss, and what keeps class features apart."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.precision import at_least_float32, autocast_disabled
from ..runtime.errors import PretrainError
from ..training.settings import require, require_choice
from .centering import RunningMean, SinkhornKnopp
from .collectives import gather_rows
from .lightly_losses import ClassTokenLoss, KoLeoLoss, PatchTokenLoss
from .masking import MaskedPatches
from .prototype_loss import PatchTargets
from .prototype_scores import PrototypeScores


class KoLeo(nn.Module):
    """−mean_i log min_{j ≠ i} ‖z_i − z_j‖ of L2-normalised features z, by lightly, in float32 at least.

    Equal features give a large finite number, not infinity, as in half width they would.
    Source: Sablayrolles et al. (arXiv 1806.03198), equation 4; DINOv2 (arXiv 2304.07193), section 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss = KoLeoLoss()

    def forward(self, features: Tensor) -> Tensor:
        """Computes the regulariser of features (n, D)."""
        with autocast_disabled(features.device.type):
            value: Tensor = self.loss(at_least_float32(features))
            return value


class KernelDensity(nn.Module):
    """mean_i log mean_j exp(κ z_iᵀ z_j): the log density of L2-normalised features under a von Mises-Fisher kernel.

    It has no pole where two features coincide, as KoLeo has, and it weighs all neighbours, not the nearest alone. κ is
    how fast the kernel falls off: a neighbour at angle α counts exp(κ (cos α − 1)) times as much as
    the feature itself, for κ = 5 a tenth at 57°. Source: Virchow2 (arXiv 2408.00738), section on regularisation, after
    Wang and Isola (arXiv 2005.10242); j = i is counted, which shifts no gradient of its own.

    Args:
        concentration: κ.
    """

    def __init__(self, concentration: float = 5.0) -> None:
        super().__init__()
        self.concentration = concentration

    def forward(self, features: Tensor) -> Tensor:
        """Computes the regulariser of features (n, D)."""
        with autocast_disabled(features.device.type):
            z = F.normalize(at_least_float32(features), dim=1)
            similarities = self.concentration * (z @ z.T)
            densities = torch.logsumexp(similarities, dim=1) - math.log(max(len(z), 1))
            return densities.mean()


Centering = Literal["sinkhorn_knopp", "centering"]
Regularizer = Literal["koleo", "kde", "none"]
Scope = Literal["rank", "world"]


class DINOv2Loss(nn.Module):
    """DINO on class tokens, iBOT on masked patches, and a regulariser that spreads the class features.

    With B images, two global and L local crops of each, H the cross-entropy of the student under the teacher's target:
    ``dino_local`` is the sum over the 2 L pairs (global, local crop), ``dino_global`` that over the 2 pairs of different
    global crops, both divided by 2 L + 2 and averaged over images; ``ibot`` averages over the 2 B global crops the mean
    over their masked patches; the regulariser is summed over the two global crops. Each is times its weight, and
    ``total`` is the sum of all.

    Source: DINOv2 (arXiv 2304.07193), section 4, with the scale factors of its published code. The cross-entropies and
    KoLeo are lightly's. Everything is computed in float32, or in float64 where scores are float64, autocast or not.

    Args:
        num_prototypes: Prototypes of each head, K.
        centering: "sinkhorn_knopp" balances the targets within the batch of all processes; "centering" takes a running
            mean from the scores, which is this module's state.
        student_temp: Temperature of the student.
        center_momentum: Momentum of the running mean.
        sinkhorn_iterations: Iterations of Sinkhorn-Knopp.
        dino_weight: Weight of both class-token losses.
        ibot_weight: Weight of the masked patches' loss.
        regularizer: "koleo", "kde" or "none".
        regularizer_weight: Its weight.
        regularizer_scope: "rank" compares the images of a process, as DINOv2 does; "world" those of all processes,
            which must then have equally many.
        kde_concentration: Concentration κ of "kde".
        ibot_chunk_rows: Masked patches whose scores ``compute_losses`` holds at a time; 0 for all.
        group: Process group of targets and regulariser; None for the default one.

    Raises:
        PretrainError: A choice is none of these, or a number is out of its range.
    """

    def __init__(
        self,
        num_prototypes: int,
        centering: Centering = "sinkhorn_knopp",
        *,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        sinkhorn_iterations: int = 3,
        dino_weight: float = 1.0,
        ibot_weight: float = 1.0,
        regularizer: Regularizer = "koleo",
        regularizer_weight: float = 0.1,
        regularizer_scope: Scope = "rank",
        kde_concentration: float = 5.0,
        ibot_chunk_rows: int = 512,
        group: Any = None,
    ) -> None:
        super().__init__()
        for name, choice, allowed in (
            ("centering", centering, Centering),
            ("regularizer", regularizer, Regularizer),
            ("regularizer_scope", regularizer_scope, Scope),
        ):
            require_choice(name, choice, allowed)
        for name, number, lowest in (
            ("num_prototypes", num_prototypes, 1),
            ("sinkhorn_iterations", sinkhorn_iterations, 1),
            ("ibot_chunk_rows", ibot_chunk_rows, 0),
        ):
            require(number >= lowest, name, number, f"at least {lowest}")
        require(student_temp > 0, "student_temp", student_temp, "above 0")
        self.num_prototypes, self.student_temp = num_prototypes, student_temp
        self.dino_weight, self.ibot_weight = dino_weight, ibot_weight
        self.regularizer_name, self.regularizer_weight = regularizer, regularizer_weight
        self.regularizer_scope, self.group = regularizer_scope, group
        self.ibot_chunk_rows = ibot_chunk_rows

        def make_centering() -> SinkhornKnopp | RunningMean:
            if centering == "sinkhorn_knopp":
                return SinkhornKnopp(sinkhorn_iterations, group)
            return RunningMean(num_prototypes, center_momentum, group)

        self.class_centering, self.patch_centering = make_centering(), make_centering()
        # not children, because their centres of zero are not state
        self._losses = ClassTokenLoss(student_temp), PatchTokenLoss(student_temp)
        self._regularizer: nn.Module | None = None
        if regularizer != "none":
            self._regularizer = KoLeo() if regularizer == "koleo" else KernelDensity(kde_concentration)

    def forward(
        self,
        teacher_cls: Tensor,
        student_global_cls: Tensor,
        student_local_cls: Tensor,
        mask: Tensor,
        teacher_patch: Tensor,
        student_patch: Tensor,
        student_feature: Tensor,
        teacher_temp: float,
    ) -> dict[str, Tensor]:
        """Computes the loss from whole scores; rows are crop by crop, (crop · B + image).

        Every process must call it alike, with masked patches or without.

        Args:
            teacher_cls: Teacher's scores of the global crops' class tokens, (2B, K).
            student_global_cls: The student's, (2B, K).
            student_local_cls: The student's of the local crops, (L·B, K).
            mask: True where a patch of a global crop is hidden from the student, bool, (2B, N).
            teacher_patch: Teacher's scores of the masked patches, (M, K), in the order of the mask.
            student_patch: The student's, (M, K).
            student_feature: The student's class features of the global crops, (2B, D).
            teacher_temp: Temperature of the teacher.

        Returns:
            ``dino_local``, ``dino_global``, the regulariser's name ("koleo"), ``ibot`` and ``total``; scalars.

        Raises:
            PretrainError: The shapes do not fit each other.
        """
        self._check_shapes(teacher_cls, student_global_cls, student_local_cls, student_feature)
        if student_patch.shape != teacher_patch.shape:
            raise PretrainError(
                f"`student_patch` has shape {tuple(student_patch.shape)}, `teacher_patch` {tuple(teacher_patch.shape)}; "
                "both must have a row for each masked patch"
            )
        targets = self.class_targets(teacher_cls, teacher_temp)
        ibot = self.patch_loss(teacher_patch, student_patch, mask, teacher_temp)
        return self.combine(targets, student_global_cls, student_local_cls, student_feature, ibot)

    @torch.no_grad()
    def class_targets(self, teacher_cls: Tensor, teacher_temp: float) -> Tensor:
        """Centres the teacher's class tokens; updates the running mean, if there is one.

        Args:
            teacher_cls: The teacher's scores, (2B, K).
            teacher_temp: Its temperature.

        Returns:
            (2B, K), of which softmax gives the targets.
        """
        return self._log_targets(self.class_centering, teacher_cls, teacher_temp)

    def patch_loss(
        self, teacher_patch: Tensor, student_patch: Tensor, mask: Tensor, teacher_temp: float
    ) -> Tensor:
        """Computes iBOT's loss, unweighted, from whole scores; updates the running mean, if there is one.

        Args:
            teacher_patch: The teacher's scores, (M, K).
            student_patch: The student's, (M, K).
            mask: (2B, N), bool.
            teacher_temp: The teacher's temperature.

        Returns:
            A scalar; 0 where nothing is masked.
        """
        with torch.no_grad():
            targets = self._log_targets(self.patch_centering, teacher_patch, teacher_temp)
        with autocast_disabled(targets.device.type):
            return self._losses[1].masked_patches(targets, at_least_float32(student_patch), mask)

    @torch.no_grad()
    def patch_targets(
        self, scores: PrototypeScores, masked: MaskedPatches, teacher_temp: float
    ) -> PatchTargets:
        """Centres the teacher's masked patches without computing them all at once.

        Updates the running mean, if there is one. ``prototype_cross_entropy`` turns the targets into the same loss as
        ``patch_loss``.
        """
        with autocast_disabled(scores.rows.device.type):
            return PatchTargets(
                scores=scores,
                temperature=teacher_temp,
                offset=self.patch_centering(scores, teacher_temp),
                row_weights=masked.row_weights,
                student_temperature=self.student_temp,
            )

    def combine(
        self,
        class_targets: Tensor,
        student_global_cls: Tensor,
        student_local_cls: Tensor,
        student_feature: Tensor,
        ibot: Tensor | None,
    ) -> dict[str, Tensor]:
        """Adds the class tokens' losses and the regulariser to the patches' loss.

        Args:
            class_targets: Of ``class_targets``, (2B, K).
            student_global_cls: The student's scores of the global crops, (2B, K).
            student_local_cls: Those of the local crops, (L·B, K).
            student_feature: The student's class features of the global crops, (2B, D).
            ibot: Of ``patch_loss``; None for class tokens alone.
        """
        num_images = len(class_targets) // 2
        with autocast_disabled(class_targets.device.type):
            targets = list(class_targets.chunk(2))
            global_scores = list(at_least_float32(student_global_cls).chunk(2))
            # split makes an empty part of an empty tensor
            local_scores = (
                list(at_least_float32(student_local_cls).split(num_images)) if len(student_local_cls) else []
            )
            scale = self.dino_weight / (2 * len(local_scores) + 2)
            parts = {
                "dino_local": scale * self._losses[0].all_views(targets, local_scores),
                "dino_global": scale * self._losses[0].cross_views(targets, global_scores),
            }
            if self._regularizer is not None:
                crops = at_least_float32(student_feature).chunk(2)
                if self.regularizer_scope == "world":
                    crops = tuple(gather_rows(crop, self.group) for crop in crops)
                spread = torch.stack([self._regularizer(crop) for crop in crops]).sum()
                parts[self.regularizer_name] = self.regularizer_weight * spread
            if ibot is not None:
                parts["ibot"] = self.ibot_weight * ibot
            parts["total"] = torch.stack([part.to(targets[0].dtype) for part in parts.values()]).sum()
        return parts

    @torch.no_grad()
    def teacher_probabilities(
        self, teacher_cls: Tensor, teacher_patch: Tensor, teacher_temp: float
    ) -> dict[str, Tensor]:
        """Computes the targets as probabilities and changes no state.

        Args:
            teacher_cls: The teacher's scores of the class tokens, (2B, K).
            teacher_patch: Its scores of the masked patches, (M, K).
            teacher_temp: Its temperature.

        Returns:
            ``teacher_cls_prob``, (2B, K), the two crops swapped, so that row i is the target of the student's global
            row i; ``teacher_patch_prob``, (M, K).
        """
        with autocast_disabled(teacher_cls.device.type):
            found = []
            for centering, x in ((self.class_centering, teacher_cls), (self.patch_centering, teacher_patch)):
                scores = PrototypeScores(rows=x)
                if isinstance(centering, RunningMean):
                    offset = centering.offset(teacher_temp, scores.dtype)
                else:
                    offset = centering(scores, teacher_temp)
                found.append(torch.softmax(scores.scores(slice(None), teacher_temp) - offset, dim=1))
        swapped = found[0].roll(len(teacher_cls) // 2, dims=0)
        return {"teacher_cls_prob": swapped, "teacher_patch_prob": found[1]}

    def _log_targets(self, centering: nn.Module, x: Tensor, temperature: float) -> Tensor:
        with autocast_disabled(x.device.type):
            scores = PrototypeScores(rows=x)
            offset = centering(scores, temperature)
            return scores.scores(slice(None), temperature).sub_(offset)

    def _check_shapes(self, teacher: Tensor, global_: Tensor, local: Tensor, features: Tensor) -> None:
        """Raises PretrainError unless the class tokens are those of the same images."""
        rows = len(teacher)
        if (
            rows == 0
            or rows % 2
            or teacher.shape != global_.shape
            or teacher.shape[1] != self.num_prototypes
            or local.shape[1:] != teacher.shape[1:]
            or len(local) % (rows // 2)
            or len(features) != rows
        ):
            raise PretrainError(
                f"`teacher_cls` {tuple(teacher.shape)}, `student_global_cls` {tuple(global_.shape)}, `student_local_cls` "
                f"{tuple(local.shape)} and `student_feature` {tuple(features.shape)} do not fit; expected "
                f"(2B, {self.num_prototypes}) twice, (L·B, {self.num_prototypes}) and (2B, width)"
            )
