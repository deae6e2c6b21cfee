"""Command line: arguments → calls of the library → exit code.

0 means done, 1 a problem with data, model or output (one line on stderr), 2 wrong usage, 75 stopped by a signal with
the state saved, to be started again (`pretrain`), 130 interrupted.

Only what parses arguments is imported here; each command imports what it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import tyro
from tyro.conf import subcommand

from ..evaluate import Task, register_task
from ..runtime.errors import TimmMVHybridError, one_sentence
from ..runtime.implementation_request import check_request, requested_by_environment
from ..runtime.standard_output import standard_output
from ..version import __version__
from .doctor import Doctor
from .embed import Embed
from .evaluate import Evaluate, parse_task
from .hub import Export, Publish
from .messages import say, warnings_in_one_line
from .models import ExportOnnx, Models
from .phantom import Phantom
from .plot import Plot
from .pretrain import Pretrain, parse_pretrain
from .report import Report
from .tile import Tile

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


class Command(Protocol):
    """Arguments of one command.

    A command that can be taken up again says so in `when_interrupted`, a text.
    """

    def run(self) -> int | None:
        """Runs the command; None is exit code 0."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: Arguments behind the program's name; None takes the process's.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments == ["--version"]:
        print(f"timm-mvhybrid {__version__}")
        return DONE
    try:
        # doctor says so itself, among what else is wrong
        if arguments[:1] != ["doctor"]:
            check_request(requested_by_environment())
        command = _parse(arguments)
    except TimmMVHybridError as error:
        say(f"error: {one_sentence(error)}")
        return FAILED
    if isinstance(command, Embed | ExportOnnx) and command.pretrained and command.checkpoint is not None:
        say("error: --pretrained and --checkpoint exclude each other")
        return WRONG_USAGE
    return _run(command)


def main_of_task(task: Task[Any], args: Sequence[str] | None = None) -> int:
    """Runs a task of one's own as a command: registers it, parses its options, evaluates, writes the report.

    Args:
        task: The task.
        args: Arguments after the program's name; None takes the process's.
    """
    register_task(task)
    return _run(parse_task(task, args))


def _run(command: Command) -> int:
    """Runs a command; what ends it is said in one sentence."""
    try:
        with warnings_in_one_line(), standard_output():
            return command.run() or DONE
    except (TimmMVHybridError, OSError) as error:
        say(f"error: {one_sentence(error)}")
        return FAILED
    except KeyboardInterrupt:
        say(f"interrupted; {getattr(command, 'when_interrupted', 'no output was written')}")
        return INTERRUPTED


def _parse(arguments: list[str]) -> Command:
    """Parses all commands; wrong usage exits with code 2."""
    if arguments[:1] == ["pretrain"]:
        command: Command = parse_pretrain(arguments[1:])
        return command
    command = tyro.cli(
        Annotated[Embed, subcommand("embed")]
        | Annotated[Tile, subcommand("tile")]
        | Annotated[Pretrain, subcommand("pretrain")]
        | Annotated[Plot, subcommand("plot")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[ExportOnnx, subcommand("export-onnx")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Publish, subcommand("publish")]
        | Annotated[Phantom, subcommand("phantom")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Models, subcommand("models")]
        | Annotated[Doctor, subcommand("doctor")],
        prog="timm-mvhybrid",
        description="Pathology backbones of timm_mvhybrid. timm-mvhybrid --version prints the version.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return command
