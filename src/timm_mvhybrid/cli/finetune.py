"""``timm-mvhybrid finetune``, also as ``python -m timm_mvhybrid.finetune``: cohorts + an encoder → a run; a run → its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg, subcommand

from ..finetune.config import (
    MINT_PRESETS,
    STAMP_PRESETS,
    DataConfig,
    EncoderConfig,
    MintSettings,
    StampSettings,
    check_stamp,
)
from ..runtime.ranks import Ranks
from .flags import Flags, flags_of, parse_options
from .messages import report, say
from .training import TrainingCommand, parse_training

_DESCRIPTION = """Fine-tune an encoder by {what}, on one CPU or, under torchrun, on many GPUs.

Every setting comes from --preset, then --config, then its own flag. A run that is in --output already goes on. Validation
is on studies or patients that training does not see. Exit codes: 0 finished, 1 a problem, 75 stopped by SIGTERM or
SIGUSR1 with its state saved: start it again to go on."""
_WHAT = {
    "mint": "MINT: measured expression, into a token of its own",
    "stamp": "STAMP: low-rank adapters that align images and pathway scores",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mint(TrainingCommand):
    """Teach an encoder measured expression in a token of its own; class and patch features stay near the frozen ones."""

    preset: Literal["default", "smoke"] = "default"
    """Where settings start from: this package's defaults, or a minute's run of a tiny model."""
    config: Annotated[MintSettings, arg(name="")]

    def plan(self, world_size: int) -> tuple[Any, str]:
        """Opens the cohorts and builds the networks."""
        from ..finetune.plan import format_plan, make_plan
        from ..finetune.runs import MintRun

        plan = make_plan(self.config, MintRun)
        return plan, format_plan(plan)

    def train(self) -> Any:
        """Runs."""
        from ..finetune.runs import run_mint

        _warn_of_random_weights(self.config.model)
        return run_mint(self.config, resume=self.resume, allow_changes=self.allow_changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stamp(TrainingCommand):
    """Align an encoder with pathway scores by low-rank adapters, which are merged at the end."""

    preset: Literal["default", "smoke"] = "default"
    """Where settings start from: the numbers of SEAL, or a minute's run of a tiny model."""
    config: Annotated[StampSettings, arg(name="")]

    def plan(self, world_size: int) -> tuple[Any, str]:
        """Opens the cohorts and builds the network."""
        from ..finetune.plan import format_plan, make_plan
        from ..finetune.runs import StampRun

        check_stamp(self.config)
        plan = make_plan(self.config, StampRun)
        return plan, format_plan(plan)

    def train(self) -> Any:
        """Runs."""
        from ..finetune.runs import run_stamp

        _warn_of_random_weights(self.config.model)
        return run_stamp(self.config, resume=self.resume, allow_changes=self.allow_changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """Write one page of what a run of MINT or STAMP did to its encoder: curves and tables."""

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of the run; it may still be going on."""
    output: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder to write; RUN/report by default."""
    overwrite: bool = False
    """Replace an earlier report."""

    def run(self) -> None:
        """Runs the command."""
        from ..finetune.report import report_run

        report({"page": str(report_run(self.run_folder, self.output, overwrite=self.overwrite))})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tune an encoder on measured expression (mint) or pathways (stamp), or say what a run did (report)."""

    command: Annotated[
        Annotated[Mint, subcommand("mint")]
        | Annotated[Stamp, subcommand("stamp")]
        | Annotated[FinetuneReport, subcommand("report")],
        arg(name=""),
    ]

    def run(self) -> int | None:
        """Runs the command."""
        return self.command.run()


def _warn_of_random_weights(model: EncoderConfig) -> None:
    if model.weights is None and not model.pretrained and Ranks.from_environment().is_first:
        say(
            f"warning: {model.name} starts from random weights, so there is nothing to fine-tune; give --checkpoint FILE or "
            "--model.pretrained"
        )


_COMMANDS: dict[str, type[Any]] = {"mint": Mint, "stamp": Stamp, "report": FinetuneReport}


def parse_finetune(arguments: Sequence[str]) -> Any:
    """Parses the command; defaults of mint and stamp depend on ``--preset`` and ``--config``; wrong usage exits with 2.

    Raises:
        PretrainError: The file of --config cannot be used, or a setting is outside its range.
    """
    name = arguments[0] if arguments else ""
    presets: dict[str, Mapping[str, Any]] = {"mint": MINT_PRESETS, "stamp": STAMP_PRESETS}
    if name in presets:
        return parse_training(
            _COMMANDS[name],
            presets[name],
            DataConfig,
            arguments[1:],
            prog=f"timm-mvhybrid finetune {name}",
            description=_DESCRIPTION.format(what=_WHAT[name]),
        )
    return parse_options(Finetune, arguments, prog="timm-mvhybrid finetune", sections=True)


def flags_of_finetune(arguments: Sequence[str]) -> Flags:
    """Reads the flags off the options of the command that is asked for."""
    return flags_of(_COMMANDS.get(arguments[0] if arguments else ""), sections=True)
