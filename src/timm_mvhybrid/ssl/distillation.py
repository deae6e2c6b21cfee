"""Self-distillation of any recipe: crops → student and teacher → losses and what is watched; the teacher follows the student."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from ..data import Samples
from ..data.samples import CorruptSample
from ..training.measuring import sharded_type, undisturbed
from ..training.objective import Alarm, Objective
from ..training.optimizer import parameter_groups
from ..training.parallelize import parallelize
from ..training.schedules import cosine_schedule, linear_warmup
from ..training.step import as_numbers
from ..training.teacher_file import write_teacher
from ..training.world import World
from ..weights.position_grid import PATCH_GRID, grid_of
from .augmentation import DeviceAugmentation
from .by_kind import WATCHED_IMAGES, block_measures, gradient_norms, start_warnings
from .config import DistillationConfig, MaskConfig
from .crops import CropBatch
from .loader import make_loader
from .losses import DINOv2Loss
from .masking import MaskedPatches, masks_of_step
from .monitor import CollapseAlarm, FeatureWindow, prototype_usage, teacher_entropy
from .photometric import PhotometricOptions
from .prototype_scores import PrototypeScores
from .student_teacher import Network, NetworkOutput, build_pair, update_teacher


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
    def total(self) -> Tensor:
        """The part to differentiate."""
        return self.parts["total"]


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


class Views(NamedTuple):
    """What student and teacher see of a batch.

    Attributes:
        global_crops: (2B, 3, G, G), normalised, crop by crop.
        local_crops: (L·B, 3, l, l), likewise.
        mask: True where a patch of a global crop is hidden from the student, bool, (2B, N), on the CPU; None without
            iBOT.
        last: Whether this is the last backward pass of its step.
    """

    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor | None
    last: bool


class SelfDistillation(Objective):
    """An objective whose student learns from its own moving average: DINO, KoLeo or KDE, and iBOT where there are masks.

    A recipe adds its data, and whatever it learns and measures besides. More losses on the student: ``build_networks``
    returns a student with more in it, ``prepare`` brings what that takes, and ``losses`` adds to those of ``compare``.
    The teacher follows the part of the student that has its names.

    Source: DINO (arXiv 2104.14294), DINOv2 (arXiv 2304.07193); see :class:`~timm_mvhybrid.ssl.losses.DINOv2Loss`.

    Args:
        config: The run.
        world: Its processes, over which student and teacher are laid out.
        samples: The images.
        mask: What iBOT hides; None for class tokens alone.
        num_workers: Processes that read and crop; 0 reads in this one.
        max_corrupt: Different unreadable samples that are reported and replaced before the run stops.
        by_kind: Whether to log gradients by kind of parameter, and what blocks do; for students of crops and masks alone.

    Attributes:
        student: The student, which is trained.
        teacher: Its moving average.
        criterion: The loss.
        grid: Rows and columns of patches of a global crop.
        mean: Mean of the model's normalisation, RGB on 0 to 1.
        std: Its standard deviation.
        augment: Colour, blur and normalisation on the device.

    Raises:
        PretrainError: The model cannot be trained this way.
    """

    def __init__(
        self,
        config: DistillationConfig,
        world: World,
        samples: Samples,
        *,
        mask: MaskConfig | None,
        num_workers: int = 0,
        max_corrupt: int = 0,
        by_kind: bool = False,
    ) -> None:
        self.config, self.world, self.samples, self._mask = config, world, samples, mask
        self._reading = {"num_workers": num_workers, "max_corrupt": max_corrupt}
        self.num_samples, self.data_fingerprint = len(samples), samples.fingerprint()
        torch.manual_seed(config.seed)
        self.student, self.teacher = self.build_networks()
        self.trained = self.student
        self._warnings = () if mask is None else start_warnings(self.student.backbone)
        for network, recompute in ((self.student, True), (self.teacher, False)):
            network.to(world.device)
            parallelize(network, world.mesh, config.parallel, recompute=recompute)
        self.criterion = _make_criterion(config).to(world.device)
        backbone, size = self.student.backbone, config.crops.global_size_px
        self.grid: tuple[int, int] = backbone.patch_embed.dynamic_feat_size((size, size))
        self.mean, self.std = (tuple(backbone.pretrained_cfg[name]) for name in ("mean", "std"))
        self._colour = PhotometricOptions(hed_jitter=config.crops.hed_jitter)
        self.augment = DeviceAugmentation(
            config.crops.augmentation, mean=self.mean, std=self.std, options=self._colour
        )
        monitor = config.monitor
        self._collapse = CollapseAlarm(
            min_feature_std=monitor.min_feature_std,
            min_rankme=monitor.min_rankme,
            num_checks=monitor.collapse_checks,
        )
        self._features = FeatureWindow()
        self._targets: Tensor | None = None
        self._measures_kinds = by_kind
        self._norms: dict[str, Tensor] = {}
        self._watched: tuple[Tensor, Tensor | None] | None = None

    def build_networks(self) -> tuple[Network, Network]:
        """Builds student and teacher on the CPU; torch's random numbers are seeded."""
        model = self.config.model
        return build_pair(
            model.name,
            self.config.head,
            model_arguments={"img_size": self.config.crops.global_size_px, **model.arguments},
            drop_path_rate=model.drop_path_rate,
            pretrained=model.pretrained,
            checkpoint=model.weights,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Sorts the student's parameters; the prototypes are last layers."""
        recipe = self.config.optimizer
        return parameter_groups(
            self.student,
            patch_embed_lr_multiplier=recipe.patch_embed_multiplier,
            layer_decay=recipe.layer_decay,
            decay_ssm=recipe.decay_ssm,
        )

    def batches(self, start_pass: int) -> Generator[CropBatch, None, None]:
        """Yields crops, from workers that end with the generator."""
        config, world = self.config, self.world
        loader = make_loader(
            self.samples,
            crops=config.crops,
            augmentation=config.crops.augmentation,
            photometric=self._colour,
            batch_size=config.images_per_pass(world.world_size),
            num_steps=config.num_steps * config.parallel.accumulate,
            start_step=start_pass,
            rank=world.rank,
            world_size=world.world_size,
            seed=config.seed,
            pin_memory=world.device.type == "cuda",
            **self._reading,
        )
        return iter(loader)

    def unreadable(self, batch: CropBatch) -> Sequence[CorruptSample]:
        """Lists the patches that were replaced."""
        return batch.corrupt

    def prepare(self, batch: CropBatch, step: int) -> Views:
        """Draws masks, and colour and blur on the device."""
        config, world = self.config, self.world
        number = batch.step - step * config.parallel.accumulate
        mask = None
        if self._mask is not None:
            # places of this process's images among all of the step
            first = (number * world.world_size + world.rank) * len(batch)
            mask = masks_of_step(
                self.grid,
                positions=range(first, first + len(batch)),
                num_images=config.batch_size,
                share=self._mask.share,
                ratio=self._mask.ratio,
                seed=config.seed,
                step=step,
            )
        global_crops, local_crops = self.augment(batch.to(world.device))
        return Views(global_crops, local_crops, mask, last=number == config.parallel.accumulate - 1)

    def losses(self, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Compares student and teacher."""
        return self.compare(batch, step).parts

    def compare(self, views: Views, step: int, **inputs: Any) -> Losses:
        """Runs teacher and student once each, and compares them.

        Args:
            views: Of ``prepare``.
            step: The step.
            **inputs: Further arguments of the student's forward.
        """
        temperature = self.schedules(step)["teacher_temperature"]
        found = compute_losses(self.student, self.teacher, self.criterion, *views[:3], temperature, **inputs)
        if views.last:
            # not the losses, which hold the graph
            self._targets = found.class_targets
            self._features.add(found.teacher_features)
            if self._measures_kinds:
                mask = None if views.mask is None else views.mask[:WATCHED_IMAGES]
                self._watched = (views.global_crops[:WATCHED_IMAGES], mask)
        return found

    def after_backward(self, step: int) -> None:
        """Measures the gradients by kind of parameter, where they are logged."""
        every = self.config.monitor.log_every_steps
        if self._measures_kinds and ((step + 1) % every == 0 or step + 1 == self.config.num_steps):
            self._norms = gradient_norms(self.student)

    def after_step(self, step: int) -> None:
        """Moves the teacher towards the student."""
        update_teacher(self.student, self.teacher, self.schedules(step)["teacher_momentum"])

    def schedules(self, step: int) -> dict[str, float]:
        """Names momentum and temperature of the teacher."""
        recipe, loss = self.config.optimizer, self.config.loss
        return {
            "teacher_momentum": cosine_schedule(
                step,
                start=recipe.teacher_momentum,
                end=recipe.final_teacher_momentum,
                num_steps=self.config.num_steps,
            ),
            "teacher_temperature": linear_warmup(
                step,
                start=loss.teacher_temperature_start,
                end=loss.teacher_temperature,
                num_steps=loss.teacher_temperature_warmup_steps,
            ),
        }

    def metrics(self) -> dict[str, float]:
        """Measures the teacher's targets of the last pass, and its features of the last images."""
        assert self._targets is not None
        probabilities = self._targets.softmax(dim=1)
        return {
            "teacher/entropy": teacher_entropy(probabilities),
            "teacher/prototype_usage": prototype_usage(probabilities),
            **self._features.summary(),
            **self._by_kind(),
        }

    def _by_kind(self) -> dict[str, float]:
        """Measures gradients by kind and blocks of the student, after the step, without a trace in the training."""
        norms = {f"grad_norm_by_kind/{kind}": norm for kind, norm in as_numbers(self._norms).items()}
        # compiled blocks do not notice hooks
        if self._watched is None or self.config.parallel.compile:
            return norms
        crops, mask = self._watched
        masked = None if mask is None else MaskedPatches.of(mask, crops.device)
        with undisturbed(self.student, self.world.device), sharded_type(self.world, self.config.parallel):
            measured = block_measures(
                self.student.backbone, lambda: self.student(crops, masked=masked, hide=True)
            )
        return {**norms, **measured}

    def warnings(self) -> Sequence[str]:
        """Warns of a mask token that stays 0."""
        return self._warnings

    def check(self, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Notices features that have collapsed."""
        problem = self._collapse.check(step, feature_std=metrics["feature_std"], rankme=metrics["rankme"])
        if problem is None:
            return None
        return Alarm(event="collapse", message=problem, stop=self.config.monitor.stop_on_collapse)

    def class_features(self, images: Tensor) -> Tensor:
        """Computes the teacher's class tokens, (B, D), of normalised images, (B, 3, H, W); every process calls it."""
        found: Tensor = self.teacher(images).class_features
        return found

    def state_dict(self) -> dict[str, Any]:
        """Names student, teacher and the running centres of the loss."""
        return {
            "student": get_model_state_dict(self.student),
            "teacher": get_model_state_dict(self.teacher),
            "criterion": self.criterion.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up student, teacher and centres."""
        set_model_state_dict(self.student, state["student"])
        set_model_state_dict(self.teacher, state["teacher"])
        self.criterion.load_state_dict(state["criterion"])

    def facts(self) -> dict[str, Tensor]:
        """States rows and columns of patches of the position embedding, which their number does not tell."""
        return {PATCH_GRID: torch.tensor(grid_of(self.teacher.backbone), device="cpu")}

    def write_weights(self, folder: Path) -> Path:
        """Writes the teacher's backbone."""
        return write_teacher(self.teacher, folder, self.world)


def _make_criterion(config: DistillationConfig) -> DINOv2Loss:
    head, loss = config.head, config.loss
    return DINOv2Loss(
        head.num_prototypes,
        loss.centering,
        student_temp=loss.student_temperature,
        center_momentum=loss.center_momentum,
        sinkhorn_iterations=loss.sinkhorn_iterations,
        dino_weight=loss.dino_weight,
        ibot_weight=loss.ibot_weight,
        regularizer=loss.regularizer,
        regularizer_weight=loss.regularizer_weight,
        regularizer_scope=loss.regularizer_scope,
        kde_concentration=loss.kde_concentration,
        ibot_chunk_rows=head.ibot_chunk_rows,
    )
