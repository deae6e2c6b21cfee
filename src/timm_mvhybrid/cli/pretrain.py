"""``timm-mvhybrid pretrain``, also as ``python -m timm_mvhybrid.pretrain``: settings → a run → exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from ..pretrain.config import DataConfig, PretrainConfig
from ..pretrain.plan import format_plan, make_plan
from ..pretrain.presets import PRESETS
from ..runtime.codec import encode, update
from ..runtime.ranks import Ranks
from ..training.config_file import read_config_file
from ..training.stop_signal import EXIT_CODE
from .flags import parse_options

_DESCRIPTION = """Pretrain a backbone by DINOv2's self-supervision, on one CPU or, under torchrun, on many GPUs.

Every setting comes from --preset, then --config, then its own flag. A run that is in --output already goes on. Exit
codes: 0 finished, 1 a problem, 75 stopped by SIGTERM or SIGUSR1 with its state saved: start it again to go on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pretrain a backbone by DINOv2's self-supervision; its --help lists all settings."""

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
        ranks = Ranks.from_environment()
        if self.dry_run:
            plan = make_plan(self.config, ranks.world_size)
            if not ranks.is_first:
                return None
            config = encode(self.config)
            if sys.stdout.isatty():
                print(json.dumps(config, indent=2, ensure_ascii=False))
                print(format_plan(plan, self.config, ranks.world_size))
            else:
                print(json.dumps({"config": config, "plan": dataclasses.asdict(plan)}, ensure_ascii=False))
            return None
        # of the extra `pretrain`, which the other commands do without
        from ..pretrain.train import train

        result = train(self.config, resume=self.resume, allow_changes=self.allow_changes)
        if ranks.is_first and not sys.stdout.isatty():
            print(json.dumps(dataclasses.asdict(result), default=str, ensure_ascii=False))
        return EXIT_CODE if result.stopped_by is not None else None


def parse_pretrain(arguments: Sequence[str]) -> Pretrain:
    """Parses the command, whose defaults depend on ``--preset`` and ``--config``; wrong usage exits with code 2.

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
        config = update(config, values, str(known.config))
    command: Pretrain = parse_options(
        Pretrain,
        arguments,
        prog="timm-mvhybrid pretrain",
        description=_DESCRIPTION,
        default=Pretrain(preset=known.preset, config=config),
        sections=True,
    )
    return command
