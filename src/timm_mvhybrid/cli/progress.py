"""What a run shows while it lasts: reports of batches and folds → a progress bar on a terminal, and JSON lines in a log file."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..embed.embeddings import BatchReport, EmbeddingSummary
from ..embed.engine_calls import EngineReport
from ..runtime.errors import OutputError, ParameterError
from ..runtime.line_file import LineFile
from ..runtime.stage import StageReport
from ..training.progress import ShownBar
from .messages import worded


class RunDisplay(ShownBar):
    """A progress bar on stderr, silent unless that is a terminal.

    Unreadable patches are reported by name either way.

    Args:
        console: Where to draw; None takes stderr.
        description: What is done first.
    """

    def __init__(self, console: Console | None = None, *, description: str = "embedding") -> None:
        self.console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(description, rate="", total=None)
        self._description = description

    def update(self, report: BatchReport, source: str = "") -> None:
        """Moves the bar and names the patches that were left out."""
        for message in report.errors:
            self.console.print(
                f"warning: skipped {worded(message)}", style="yellow", markup=False, soft_wrap=True
            )
        rate = f"{report.num_done / max(report.seconds, 1e-9):.1f} patches/s"
        self.show(f"embedding {source}".rstrip(), report.num_done, report.num_total, rate)

    def advance(self, report: StageReport) -> None:
        """Moves the bar over the folds that are scored."""
        self.show(f"scoring {report.stage}", report.num_done, report.num_total, report.model)

    def show(self, description: str, num_done: int, num_total: int, rate: str = "") -> None:
        """Moves the bar, which begins again where something else is done than before."""
        if description != self._description:
            # what remains is estimated from the new stage alone
            self._bar.reset(self._task, description=description)
            self._description = description
        self._bar.update(self._task, completed=num_done, total=num_total, rate=rate)

    def summarise(self, summary: EmbeddingSummary) -> None:
        """Says what was done, on a terminal only."""
        if not self.console.is_terminal:
            return
        noun = "patch" if summary.num_corrupt == 1 else "patches"
        skipped = f", {summary.num_corrupt} unreadable {noun} left out" if summary.num_corrupt else ""
        if summary.num_over_edge:
            what = "left out" if summary.edge == "skip" else f"{summary.edge} beyond it"
            skipped += f", {summary.num_over_edge} over the slide's edge ({what})"
        self.console.print(
            f"{summary.num_patches} patches × {summary.embedding_dim} → {summary.output}{skipped}\n"
            f"{summary.seconds:.1f} s, {summary.patches_per_second:.1f} patches/s, "
            f"{summary.data_wait_share:.0%} of the time waiting for patches"
            + (f"\n{summary.dtype}: {summary.dtype_reason}" if summary.dtype_reason else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


class RunLog:
    """Appends what happens to a JSON lines file.

    Args:
        path: The log; None writes nothing.
        every_num_batches: Batches between two progress lines.

    Raises:
        ParameterError: If the number of batches is below 1.
        OutputError: If the file cannot be opened.
    """

    def __init__(self, path: str | Path | None, every_num_batches: int = 10) -> None:
        if every_num_batches < 1:
            raise ParameterError(f"`log_every` must be at least 1, not {every_num_batches}")
        self.every_num_batches = every_num_batches
        self._num_batches = 0
        self.path = None if path is None else Path(path)
        if self.path is not None:
            LineFile(self.path).close()

    def write(self, event: str, **values: object) -> None:
        """Appends one line.

        Raises:
            OutputError: If the disk does not take it.
        """
        if self.path is None:
            return
        line = json.dumps({"event": event, "time": time.time(), **values}, default=str, ensure_ascii=False)
        with LineFile(self.path) as file:
            file.write(line)

    def fail(self, error: BaseException) -> None:
        """Appends what ended the run, and is silent if the disk does not take that, too."""
        with suppress(OutputError):
            self.write("error", error=type(error).__name__, message=worded(str(error)))

    def update(self, report: BatchReport | EngineReport, source: str | None = None) -> None:
        """Logs every so many batches, and every patch that was left out."""
        self._num_batches += 1
        if report.errors or self._num_batches % self.every_num_batches == 0:
            named = {} if source is None else {"source": source}
            self.write("progress", **named, **dataclasses.asdict(report))

    def advance(self, report: StageReport) -> None:
        """Logs a stage of scoring."""
        self.write("scored", **dataclasses.asdict(report))
