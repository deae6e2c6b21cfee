"""DINOv2's objective: crops → student and teacher → losses; after each step the teacher follows the student."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from ..data.manifest import open_samples
from ..data.samples import CorruptSample
from ..ssl.augmentation import DeviceAugmentation
from ..ssl.compute_losses import Losses, compute_losses
from ..ssl.crops import CropBatch
from ..ssl.loader import make_loader
from ..ssl.losses import DINOv2Loss
from ..ssl.masking import MaskedPatches, masks_of_step
from ..ssl.photometric import PhotometricOptions
from ..ssl.student_teacher import build_pair, update_teacher
from ..training.objective import Alarm, Evaluation, Objective
from ..training.optimizer import parameter_groups
from ..training.parallelize import parallelize
from ..training.schedules import cosine_schedule, linear_warmup
from ..training.teacher_file import write_teacher
from ..training.world import World
from ..weights.position_grid import PATCH_GRID, grid_of
from .config import PretrainConfig
from .monitor import CollapseAlarm, FeatureWindow, prototype_usage, teacher_entropy
from .online_probe import OnlineProbe


class Views(NamedTuple):
    """What student and teacher see of a batch.

    Attributes:
        global_crops: (2B, 3, G, G), normalised, crop by crop.
        local_crops: (L·B, 3, l, l), likewise.
        mask: True where a patch of a global crop is hidden from the student, bool, (2B, N), on the CPU.
        last: Whether this is the last backward pass of its step.
    """

    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor
    last: bool


class DINOv2Objective(Objective):
    """Self-distillation of class tokens and masked patches, with an online probe of the teacher.

    Source: DINOv2 (arXiv 2304.07193); see :class:`~timm_mvhybrid.ssl.losses.DINOv2Loss`.

    Args:
        config: The run.
        world: Its processes, over which student and teacher are laid out.

    Attributes:
        student: The student, which is trained.
        teacher: Its moving average.
        criterion: The loss.
        grid: Rows and columns of patches of a global crop.
        augment: Colour, blur and normalisation on the device.

    Raises:
        PretrainError: The model cannot be trained this way, or the labelled set of the probe cannot be used.
        DataError: The patches cannot be opened.
    """

    name = "pretraining"

    def __init__(self, config: PretrainConfig, world: World) -> None:
        self.config, self.world = config, world
        self.samples = open_samples(config.data.sources, slides=config.data.slides, edge=config.data.edge)
        self.num_samples, self.data_fingerprint = len(self.samples), self.samples.fingerprint()
        self._build_networks()
        backbone, size = self.student.backbone, config.crops.global_size_px
        self.grid: tuple[int, int] = backbone.patch_embed.dynamic_feat_size((size, size))
        mean, std = (tuple(backbone.pretrained_cfg[name]) for name in ("mean", "std"))
        self._colour = PhotometricOptions(hed_jitter=config.crops.hed_jitter)
        self.augment = DeviceAugmentation(config.crops.augmentation, mean=mean, std=std, options=self._colour)
        monitor = config.monitor
        self._probe = None
        if monitor.probe is not None:
            self._probe = OnlineProbe(
                monitor.probe,
                image_size_px=size,
                mean=mean,
                std=std,
                batch_size=monitor.probe_batch_size,
                device=world.device,
                counts_layer=monitor.probe_counts_layer,
            )
        self._collapse = CollapseAlarm(
            min_feature_std=monitor.min_feature_std,
            min_rankme=monitor.min_rankme,
            num_checks=monitor.collapse_checks,
        )
        self._features = FeatureWindow()
        self._seen: Losses | None = None

    def _build_networks(self) -> None:
        config, world = self.config, self.world
        torch.manual_seed(config.seed)
        head, loss = config.head, config.loss
        self.student, self.teacher = build_pair(
            config.model.name,
            model_arguments={"img_size": config.crops.global_size_px, **config.model.arguments},
            drop_path_rate=config.model.drop_path_rate,
            pretrained=config.model.pretrained,
            checkpoint=config.model.weights,
            num_prototypes=head.num_prototypes,
            hidden_dim=head.hidden_dim,
            bottleneck_dim=head.bottleneck_dim,
            num_layers=head.num_layers,
            separate_ibot_head=head.separate_ibot_head,
            learn_gain=head.learn_gain,
        )
        self.trained = self.student
        for network, recompute in ((self.student, True), (self.teacher, False)):
            network.to(world.device)
            parallelize(network, world.mesh, config.parallel, recompute=recompute)
        self.criterion = DINOv2Loss(
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
        ).to(world.device)

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
            num_workers=config.data.num_workers,
            max_corrupt=config.data.max_corrupt,
            pin_memory=world.device.type == "cuda",
        )
        return iter(loader)

    def unreadable(self, batch: CropBatch) -> Sequence[CorruptSample]:
        """Lists the patches that were replaced."""
        return batch.corrupt

    def prepare(self, batch: CropBatch, step: int) -> Views:
        """Draws masks, and colour and blur on the device."""
        config, world = self.config, self.world
        number = batch.step - step * config.parallel.accumulate
        # places of this process's images among all of the step
        first = (number * world.world_size + world.rank) * len(batch)
        mask = masks_of_step(
            self.grid,
            positions=range(first, first + len(batch)),
            num_images=config.batch_size,
            share=config.mask.share,
            ratio=config.mask.ratio,
            seed=config.seed,
            step=step,
        )
        global_crops, local_crops = self.augment(batch.to(world.device))
        return Views(global_crops, local_crops, mask, last=number == config.parallel.accumulate - 1)

    def losses(self, batch: Views, step: int) -> Mapping[str, Tensor]:
        """Compares student and teacher."""
        temperature = self.schedules(step)["teacher_temperature"]
        found = compute_losses(self.student, self.teacher, self.criterion, *batch[:3], temperature)
        if batch.last:
            self._seen = found
            self._features.add(found.teacher_features)
        return found.parts

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
        assert self._seen is not None
        probabilities = self._seen.teacher_probabilities()
        return {
            "teacher/entropy": teacher_entropy(probabilities),
            "teacher/prototype_usage": prototype_usage(probabilities),
            **self._features.summary(),
        }

    def check(self, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Notices features that have collapsed."""
        problem = self._collapse.check(step, feature_std=metrics["feature_std"], rankme=metrics["rankme"])
        if problem is None:
            return None
        return Alarm(event="collapse", message=problem, stop=self.config.monitor.stop_on_collapse)

    def evaluate(self, step: int) -> Evaluation | None:
        """Probes the teacher on the labelled set, if there is one."""
        every = self.config.monitor.probe_every_steps
        if self._probe is None or (step % every and step != self.config.num_steps):
            return None
        return Evaluation(
            scores=self._probe(self.teacher, self._class_features),
            dataset=str(self.config.monitor.probe),
            protocol=self._probe.protocol,
        )

    def _class_features(self, images: Tensor) -> Tensor:
        unmasked = torch.zeros(len(images), self.grid[0] * self.grid[1], dtype=torch.bool)
        found: Tensor = self.teacher(
            images, masked=MaskedPatches.of(unmasked, self.world.device)
        ).class_features
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
