"""Arguments of ``timm-mvhybrid pretrain`` and ``python -m timm_mvhybrid.pretrain`` → a run → exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from ..training.config_file import config_to_dict, read_config_file, update_config
from ..training.stop_signal import EXIT_CODE
from .config import DataConfig, PretrainConfig
from .presets import PRESETS

_DESCRIPTION = """Pretrain a backbone by DINOv2's self-supervision, on one CPU or, under torchrun, on many GPUs.

Every setting comes from --preset, then --config, then its own flag. A run that is in --output already goes on. Exit
codes: 0 finished, 1 a problem, 75 stopped by SIGTERM or SIGUSR1 with its state saved: start it again to go on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pretrain a backbone by DINOv2's self-supervision; timm-mvhybrid pretrain --help lists its settings."""

    preset: Literal["paper", "single_gpu", "smoke"] = "paper"
    """Where settings start from: the paper's recipe, the same for one GPU, or a minute's run of a tiny model."""
    config_file: Annotated[Path | None, arg(name="config", metavar="FILE")] = None
    """JSON or YAML with any of the settings below, nested by the names in front of the dot."""
    dry_run: bool = False
    """Print the resolved settings, steps, learning rate, speed needed and memory, and stop."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Whether a run that is in --output goes on: if there is one, never (an error), or it must be there."""
    allow_changes: bool = False
    """Let a resumed run have another recipe than it had; another architecture is refused in any case."""
    config: Annotated[PretrainConfig, arg(name="")]

    when_interrupted = "the newest checkpoint is whole; start again to go on from it"

    def run(self) -> int | None:
        """Runs the command."""
        if self.dry_run:
            from .plan import format_plan, make_plan

            world_size = int(os.environ.get("WORLD_SIZE", "1"))
            plan = make_plan(self.config, world_size)
            if os.environ.get("RANK", "0") == "0":
                if sys.stdout.isatty():
                    print(json.dumps(config_to_dict(self.config), indent=2, ensure_ascii=False))
                    print(format_plan(plan, self.config, world_size))
                else:
                    found = {"config": config_to_dict(self.config), "plan": dataclasses.asdict(plan)}
                    print(json.dumps(found, ensure_ascii=False))
            return None
        from .train import train

        result = train(self.config, resume=self.resume, allow_changes=self.allow_changes)
        if os.environ.get("RANK", "0") == "0" and not sys.stdout.isatty():
            print(json.dumps(dataclasses.asdict(result), default=str, ensure_ascii=False))
        return EXIT_CODE if result.stopped_by is not None else None


def parse(arguments: Sequence[str], prog: str) -> Pretrain:
    """Parses the command; wrong usage exits with code 2.

    Args:
        arguments: Arguments behind the command's name.
        prog: The command's name, for its help.

    Returns:
        The command.

    Raises:
        PretrainError: The file of --config cannot be used, or a setting is outside its range.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=list(PRESETS), default="paper")
    first.add_argument("--config", type=Path)
    try:
        known, _ = first.parse_known_args(arguments)
    except SystemExit:
        # the full parser says the same with its own words
        known = argparse.Namespace(preset="paper", config=None)
    config = PRESETS[known.preset](output=tyro.MISSING, data=DataConfig(sources=tyro.MISSING))
    if known.config is not None:
        values = read_config_file(known.config)
        # what a run's own config.json says beyond its settings
        values.pop("resolved", None)
        config = update_config(config, values, str(known.config))
    return tyro.cli(
        Pretrain,
        prog=prog,
        description=_DESCRIPTION,
        args=list(arguments),
        default=Pretrain(preset=known.preset, config=config),
    )
