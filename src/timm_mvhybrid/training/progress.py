"""What a run shows while it lasts: steps → a progress bar with the time left, on a terminal."""

from __future__ import annotations

from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_B = TypeVar("_B", bound="ShownBar")


class ShownBar:
    """A progress bar that stands on the terminal while a with-block runs."""

    _bar: Progress

    def __enter__(self: _B) -> _B:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()


class TrainingProgress(ShownBar):
    """A progress bar on stderr; without a terminal there is none, and messages alone are printed.

    Args:
        num_steps: Steps of the whole run.
        name: What the run does, in a word.
        start_step: Steps that earlier starts did; they count as done, and not for the time left.
        enabled: Whether this process shows anything; the first one only, so that messages stand there once.
        console: Where to draw; None takes stderr.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        name: str = "training",
        start_step: int = 0,
        enabled: bool = True,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.enabled = enabled
        self._bar = Progress(
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            # a few slow steps, such as those with a checkpoint, must not swing the time left
            speed_estimate_period=300,
            disable=not (enabled and self.console.is_terminal),
        )
        self._task = self._bar.add_task(name, total=num_steps, completed=start_step, values="")

    def update(self, step: int, *, loss: float | None = None, images_per_second: float | None = None) -> None:
        """Moves the bar to the number of steps done; None leaves what it says of the loss. The rate is of all processes."""
        if self._bar.disable:
            return
        values = "" if loss is None else f"loss {loss:.4g}"
        if images_per_second is not None:
            values += f"{', ' if values else ''}{images_per_second:.4g} images/s"
        self._bar.update(self._task, completed=step)
        if values:
            self._bar.update(self._task, values=values)

    def say(self, message: str, *, style: str | None = None) -> None:
        """Prints one line, above the bar where there is one.

        Args:
            message: Any text; its line breaks become spaces.
            style: A style of rich, such as "yellow"; only terminals show it.
        """
        if self.enabled:
            self.console.print(
                " ".join(message.split()), style=style, markup=False, highlight=False, soft_wrap=True
            )
