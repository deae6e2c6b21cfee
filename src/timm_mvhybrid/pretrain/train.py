"""Pretraining by DINOv2's recipe, from a configuration to the teacher's weights: its objective in the loop of ``training``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data.manifest import open_samples
from ..ssl.distillation import SelfDistillation
from ..training.loop import Resume, run_training
from ..training.measuring import sharded_type
from ..training.objective import Evaluation
from ..training.world import World
from .config import PretrainConfig
from .probe_targets import OnlineProbe


class DINOv2Objective(SelfDistillation):
    """Self-distillation of class tokens and masked patches, with an online probe of the teacher.

    Source: DINOv2 (arXiv 2304.07193); see :class:`~timm_mvhybrid.ssl.losses.DINOv2Loss`.

    Args:
        config: The run.
        world: Its processes, over which student and teacher are laid out.

    Raises:
        PretrainError: The model cannot be trained this way, or the labelled set of the probe cannot be used.
        DataError: The patches cannot be opened.
    """

    name = "pretraining"
    config: PretrainConfig

    def __init__(self, config: PretrainConfig, world: World) -> None:
        data = config.data
        super().__init__(
            config,
            world,
            open_samples(data.sources, slides=data.slides, edge=data.edge),
            mask=config.mask,
            num_workers=data.num_workers,
            max_corrupt=data.max_corrupt,
            by_kind=config.monitor.by_kind,
        )
        monitor = config.monitor
        self._probe = None
        if monitor.probe is not None:
            self._probe = OnlineProbe(
                monitor.probe,
                image_size_px=config.crops.global_size_px,
                mean=self.mean,
                std=self.std,
                batch_size=monitor.probe_batch_size,
                device=world.device,
                counts_layer=monitor.probe_counts_layer,
            )

    def evaluate(self, step: int) -> Evaluation | None:
        """Probes the teacher on the labelled set, if there is one."""
        every = self.config.monitor.probe_every_steps
        if self._probe is None or (step % every and step != self.config.num_steps):
            return None
        with sharded_type(self.world, self.config.parallel):
            scores = self._probe(self.teacher, self.class_features)
        return Evaluation(
            scores=scores,
            dataset=str(self.config.monitor.probe),
            protocol=self._probe.protocol,
        )


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: Number of finished steps.
        stopped_by: The signal that stopped it, its state saved; None if it is finished.
        teacher: The teacher's weights; None unless it is finished.
    """

    step: int
    stopped_by: str | None = None
    teacher: Path | None = None


def train(
    config: PretrainConfig,
    *,
    resume: Resume = "auto",
    allow_changes: bool = False,
    show_progress: bool = True,
) -> TrainResult:
    """Pretrains a backbone, or goes on where a run stopped; every process of torchrun calls it.

    On the same number of processes, devices and versions a resumed run equals one that never stopped, bit for bit. On
    another number samples, crops, colours and masks are the same, and sums are rounded differently.

    Args:
        config: The run.
        resume: "auto" goes on with what is there, "never" refuses a folder that holds a run, "must" one that holds
            none.
        allow_changes: Whether a resumed run may have another recipe than it had.
        show_progress: Whether to show a bar on a terminal.

    Raises:
        PretrainError: The run cannot start or go on; the message names the cause and the remedy.
        DataError: Patches cannot be read.
    """
    result = run_training(
        config,
        partial(DINOv2Objective, config),
        resume=resume,
        allow_changes=allow_changes,
        show_progress=show_progress,
    )
    return TrainResult(step=result.step, stopped_by=result.stopped_by, teacher=result.weights)
