"""Command line: arguments → calls of the library → exit code.

0 means done, 1 a problem with data, model or output (one line on stderr), 2 wrong usage, 3 all done but slides that failed
(`embed` into a folder), 75 stopped by a signal with the state saved, to be started again (`pretrain`, `finetune`, `study
run`, `embed` into a folder), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, Union

from tyro.conf import subcommand

from ..evaluate import Task, register_task
from ..runtime.errors import TimmMVHybridError, one_sentence
from ..runtime.implementation_request import check_request, requested_by_environment
from ..version import __version__
from .analyse import Analyse
from .cohort import Cohort
from .doctor import Doctor
from .embed import Embed
from .evaluate import Evaluate, task_command
from .finetune import Finetune, flags_of_finetune, parse_finetune
from .fit import Fit
from .flags import Flags, UsageError, flags_of, parse_options
from .hub import Export, Publish
from .messages import naming, say, standard_output, warnings_in_one_line
from .models import ExportOnnx, Models
from .phantom import Phantom
from .plot import Plot
from .predict import Predict
from .prepare import Prepare
from .pretrain import Pretrain, parse_pretrain
from .report import Report
from .study import Study
from .tile import Tile

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
COMMANDS: dict[str, type[Any]] = {
    "embed": Embed,
    "cohort": Cohort,
    "tile": Tile,
    "prepare": Prepare,
    "pretrain": Pretrain,
    "finetune": Finetune,
    "fit": Fit,
    "plot": Plot,
    "evaluate": Evaluate,
    "predict": Predict,
    "analyse": Analyse,
    "export-onnx": ExportOnnx,
    "export": Export,
    "publish": Publish,
    "phantom": Phantom,
    "report": Report,
    "study": Study,
    "models": Models,
    "doctor": Doctor,
}
_ANY_COMMAND: Any = Union[  # noqa: UP007 - of as many members as there are commands
    tuple(Annotated[command, subcommand(name)] for name, command in COMMANDS.items())
]


class Command(Protocol):
    """Arguments of one command.

    A command that can be taken up again says so in `when_interrupted`, a text.
    """

    def run(self) -> int | None:
        """Runs the command; None is exit code 0."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: Arguments after the program's name; None takes the process's.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments == ["--version"]:
        print(f"timm-mvhybrid {__version__}")
        return DONE
    name = arguments[0] if arguments else ""

    def parse() -> Command:
        # doctor says so itself, among what else is wrong
        if name != "doctor":
            check_request(requested_by_environment())
        parser = {"pretrain": parse_pretrain, "finetune": parse_finetune}.get(name)
        return _parse(arguments) if parser is None else parser(arguments[1:])

    if name == "finetune":
        return _run(parse, flags_of_finetune(arguments[1:]))
    return _run(parse, flags_of(COMMANDS.get(name), sections=name == "pretrain"))


def main_of_task(task: Task[Any], args: Sequence[str] | None = None) -> int:
    """Runs a task of one's own as a command: registers it, parses its options, evaluates, writes the report.

    Args:
        task: The task.
        args: Arguments after the program's name; None takes the process's.
    """
    register_task(task)
    command = task_command(task)
    return _run(lambda: parse_options(command, args), flags_of(command))


def _run(parse: Callable[[], Command], flags: Flags) -> int:
    """Parses a command and runs it; what ends it is said in one sentence, in the words of its flags."""
    command = None
    with naming(flags):
        try:
            command = parse()
            with warnings_in_one_line(), standard_output():
                return command.run() or DONE
        except (TimmMVHybridError, OSError) as error:
            say(f"error: {one_sentence(error)}")
            return WRONG_USAGE if isinstance(error, UsageError) else FAILED
        except KeyboardInterrupt:
            say(f"interrupted; {getattr(command, 'when_interrupted', 'no output was written')}")
            return INTERRUPTED


def _parse(arguments: list[str]) -> Command:
    """Parses all commands; wrong usage exits with code 2."""
    command: Command = parse_options(
        _ANY_COMMAND,
        arguments,
        prog="timm-mvhybrid",
        description="Pathology backbones of timm_mvhybrid. timm-mvhybrid --version prints the version.",
    )
    return command
