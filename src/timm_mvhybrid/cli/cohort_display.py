"""What ``embed`` shows of a cohort while it lasts: one bar of tiles over all slides, and a line for each slide that ends."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..embed.engine_calls import EngineReport
from ..embed.slide_cohort import SlideRecord
from ..training.progress import ShownBar
from .messages import say, worded


class CohortDisplay(ShownBar):
    """A progress bar on stderr, silent unless that is a terminal.

    How many tiles there will be is known of the slides that were opened; the others are taken to have as many each.

    Args:
        num_slides: Slides of the cohort, for the lines.
        quiet: Whether another process shows it.
        console: Where to draw; None takes stderr.
    """

    def __init__(self, num_slides: int, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._shows = self.console.is_terminal and not quiet
        self._num_slides = num_slides
        self._num_ended = 0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[tiles]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self._shows,
        )
        self._task = self._bar.add_task("opening slides", total=None, tiles="")

    def update(self, report: EngineReport) -> None:
        """Moves the bar and names the tiles that were left out."""
        for message in report.errors:
            say(f"warning: skipped {message}")
        # of the slides that have tiles at all, as far as they are known
        expected = report.tiles_known * report.slides_left / max(report.slides_opened, 1)
        total = report.tiles_known + round(expected)
        about = "about " if report.slides_left else ""
        self._bar.update(
            self._task,
            description="embedding",
            completed=report.tiles_done,
            total=total,
            tiles=f"{report.tiles_done:,} of {about}{total:,} tiles, "
            f"{report.tiles_done / max(report.seconds, 1e-9):.1f} tiles/s",
        )

    def end(self, record: SlideRecord) -> None:
        """Says how a slide ended, and what was noticed of it."""
        self._num_ended += 1
        for warning in record.warnings:
            say(f"warning: {warning}")
        if not self._shows:
            return
        outcome = f"{record.tiles} tiles" if record.state == "done" else f"{record.state}: {record.error}"
        self.console.print(
            f"{self._num_ended}/{self._num_slides} {record.slide_id}: {worded(outcome)}, {record.seconds:.1f} s",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
