"""Pretraining from a configuration to the teacher's weights: DINOv2's objective in the loop of ``training``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..training.loop import Resume, run_training
from .config import PretrainConfig
from .dinov2 import DINOv2Objective


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
