"""What the commands that train share: settings from a preset, a file and flags → a run → exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import arg

from ..runtime.codec import encode, update
from ..runtime.ranks import Ranks
from ..training.config_file import read_config_file
from ..training.stop_signal import EXIT_CODE
from .flags import parse_options

Command = TypeVar("Command", bound="TrainingCommand")
Presets = Mapping[str, Callable[..., Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingCommand(ABC):
    """Fields of a command that trains; what it runs stands in its subclass, beside ``preset`` and ``config``."""

    config_file: Annotated[Path | None, arg(name="config", metavar="FILE")] = None
    """JSON or YAML with any of the settings below, nested by the names in front of the dot."""
    dry_run: bool = False
    """Print the resolved settings and what follows from them, and stop."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Whether a run that is in --output goes on: if there is one, never (an error), or it must be there."""
    allow_changes: bool = False
    """Let a resumed run have another recipe than it had; another architecture is refused in any case."""

    when_interrupted = "the newest checkpoint is whole; start again to go on from it"

    @abstractmethod
    def plan(self, world_size: int) -> tuple[Any, str]:
        """Works out what the run will need.

        Args:
            world_size: Number of processes.

        Returns:
            A dataclass, and the same for reading.
        """

    @abstractmethod
    def train(self) -> Any:
        """Runs; returns a dataclass with step and ``stopped_by``."""

    def run(self) -> int | None:
        """Runs the command."""
        ranks = Ranks.from_environment()
        if self.dry_run:
            plan, text = self.plan(ranks.world_size)
            if not ranks.is_first:
                return None
            config = encode(getattr(self, "config"))  # noqa: B009 - of the subclass
            if sys.stdout.isatty():
                print(json.dumps(config, indent=2, ensure_ascii=False))
                print(text)
            else:
                print(json.dumps({"config": config, "plan": dataclasses.asdict(plan)}, ensure_ascii=False))
            return None
        result = self.train()
        if ranks.is_first and not sys.stdout.isatty():
            print(json.dumps(dataclasses.asdict(result), default=str, ensure_ascii=False))
        return EXIT_CODE if result.stopped_by is not None else None


def parse_training(
    command: type[Command],
    presets: Presets,
    data: Callable[..., Any],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
) -> Command:
    """Parses a command whose defaults depend on ``--preset`` and ``--config``; wrong usage exits with code 2.

    Args:
        command: The command; its first preset is its default.
        presets: Its presets by name.
        data: Makes the section ``data`` of its settings from ``sources``.
        arguments: After the command's name.
        prog: The command's name in its help.
        description: First lines of its help.

    Returns:
        The command.

    Raises:
        PretrainError: The file of --config cannot be used, or a setting is outside its range.
    """
    default = next(iter(presets))
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=list(presets), default=default)
    first.add_argument("--config", type=Path)
    try:
        known, _ = first.parse_known_args(arguments)
    except SystemExit:
        # the full parser says the same with its own words
        known = argparse.Namespace(preset=default, config=None)
    config = presets[known.preset](output=tyro.MISSING, data=data(sources=tyro.MISSING))
    if known.config is not None:
        values = read_config_file(known.config)
        # what a run's own config.json says beyond its settings
        values.pop("resolved", None)
        config = update(config, values, str(known.config))
    values_of_command: Any = {"preset": known.preset, "config": config}
    found: Command = parse_options(
        command,
        arguments,
        prog=prog,
        description=description,
        default=command(**values_of_command),
        sections=True,
    )
    return found
