"""``timm-mvhybrid evaluate``: data + backbones → a folder with scores and report; one command for each task."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Union

from rich.console import Console
from tyro.conf import arg, subcommand

from ..evaluate import Progress, Result, Task, registered_tasks
from ..export.evaluations import check_run, record_result
from ..finetune import token_features  # noqa: F401 - makes known who loads models with an ST token
from ..report import check_report_folder, write_report
from ..runtime.atomic_file import claimed
from ..runtime.codec import encode
from ..runtime.ranks import Ranks
from ..version import __version__
from .messages import say
from .progress import RunDisplay, RunLog


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go.

    Attributes:
        output: Folder for results.json, tables and the page; outputs/<task>-<data> by default.
        overwrite: Replace an earlier report in that folder.
        run_folder: Run whose weights are evaluated: it keeps the results, and its model card shows them.
        log: Append start, progress and end as JSON lines.
        log_every: Batches between two progress lines of the log.
    """

    output: Annotated[Path | None, arg(metavar="DIR")] = None
    overwrite: bool = False
    run_folder: Annotated[Path | None, arg(name="run", metavar="RUN")] = None
    log: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None
    log_every: Annotated[int, arg(metavar="N")] = 10


def task_command(task: Task[Any]) -> type[Any]:
    """Makes the command of a task: its options, and where results go."""
    return dataclasses.make_dataclass(
        type(task).__name__,
        [
            ("options", Annotated[task.options, arg(name="")]),
            (
                "report",
                Annotated[OutputOptions, arg(name="")],
                dataclasses.field(default_factory=OutputOptions),
            ),
        ],
        namespace={
            "__doc__": (type(task).__doc__ or task.name).splitlines()[0],
            "run": lambda self: run_task(task, self.options, self.report),
        },
        frozen=True,
        kw_only=True,
    )


def run_task(task: Task[Any], options: Any, output: OutputOptions) -> None:
    """Runs a task: checks first, then the task with its bar and log, then the report.

    Raises:
        TimmMVHybridError: It cannot be done; the message says why.
    """
    folder = output.output or Path("outputs", f"{task.name}-{task.data(options).resolve().stem}")
    check_report_folder(folder, overwrite=output.overwrite)
    if output.run_folder is not None:
        check_run(output.run_folder, task.weights(options))
    is_first = Ranks.from_environment().is_first
    log = RunLog(output.log if is_first else None, output.log_every)
    with claimed(folder / "results.json") if is_first else nullcontext():
        log.write("start", version=__version__, options=encode(options, path=str))
        try:
            with RunDisplay(None if is_first else Console(quiet=True)) as display:
                result = task.run(options, _progress(display, log))
            if result is None:
                return
            page = write_report(result, folder, overwrite=output.overwrite)
            if output.run_folder is not None:
                record_result(output.run_folder, result)
        except BaseException as error:
            log.fail(error)
            raise
    log.write("done", page=page, scores=_means(result))
    for note in result.notes:
        say(f"note: {note}")
    if sys.stdout.isatty():
        print(f"wrote {page}")
    else:
        print(json.dumps({"page": str(page), "task": result.task, "scores": _means(result)}))


def _progress(display: RunDisplay, log: RunLog) -> Progress:
    """Tells display and log alike where a run stands."""

    def on_batch(source: str, report: Any) -> None:
        display.update(report, source)
        log.update(report, source)

    def on_stage(report: Any) -> None:
        display.advance(report)
        log.advance(report)

    return Progress(
        on_batch=on_batch, on_stage=on_stage, on_warning=lambda sentence: say(f"warning: {sentence}")
    )


def _means(result: Result) -> list[dict[str, Any]]:
    """Cuts scores to what fits a line: labels and means."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in result.summaries:
        row = rows.setdefault((one.model, one.protocol), {"model": one.model, "protocol": one.protocol})
        # JSON has no NaN
        row[one.metric] = one.mean if one.mean == one.mean else None
    return list(rows.values())


_COMMANDS: Any = Union[  # noqa: UP007 - of as many members as there are tasks
    tuple(Annotated[task_command(task), subcommand(name)] for name, task in registered_tasks().items())
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Say what backbones are worth: expression, classification, retrieval, slides, survival."""

    task: Annotated[_COMMANDS, arg(name="")]

    # embeddings that are done lie in the cache
    when_interrupted = "run it again, and it goes on from the embeddings that are done"

    def run(self) -> None:
        """Runs the command."""
        self.task.run()
