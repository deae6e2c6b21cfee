"""``timm-mvhybrid pretrain``, also as ``python -m timm_mvhybrid.pretrain``: settings → a run → exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ..pretrain.config import DataConfig, PretrainConfig
from ..pretrain.plan import PRESETS, format_plan, make_plan
from .training import TrainingCommand, parse_training

_DESCRIPTION = """Pretrain a backbone by DINOv2's self-supervision, on one CPU or, under torchrun, on many GPUs.

Every setting comes from --preset, then --config, then its own flag. A run that is in --output already goes on. Exit
codes: 0 finished, 1 a problem, 75 stopped by SIGTERM or SIGUSR1 with its state saved: start it again to go on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(TrainingCommand):
    """Pretrain a backbone by DINOv2's self-supervision; its --help lists all settings."""

    preset: Literal["paper", "single_gpu", "smoke"] = "paper"
    """Where settings start from: the paper's recipe, the same for one GPU, or a minute's run of a tiny model."""
    config: Annotated[PretrainConfig, arg(name="")]

    def plan(self, world_size: int) -> tuple[Any, str]:
        """Works out steps, learning rate, speed needed and memory."""
        plan = make_plan(self.config, world_size)
        return plan, format_plan(plan, self.config, world_size)

    def train(self) -> Any:
        """Runs."""
        # of the extra `pretrain`, which the other commands do without
        from ..pretrain.train import train

        return train(self.config, resume=self.resume, allow_changes=self.allow_changes)


def parse_pretrain(arguments: Sequence[str]) -> Pretrain:
    """Parses the command, whose defaults depend on ``--preset`` and ``--config``; wrong usage exits with code 2.

    Raises:
        PretrainError: The file of --config cannot be used, or a setting is outside its range.
    """
    return parse_training(
        Pretrain, PRESETS, DataConfig, arguments, prog="timm-mvhybrid pretrain", description=_DESCRIPTION
    )
