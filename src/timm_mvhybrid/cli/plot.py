"""``timm-mvhybrid plot``: folders of runs → a picture of their curves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..training.plot import plot_runs
from .messages import report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw the curves of one pretraining run, or of several over each other, to one PNG file."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """Folders of runs, with their metrics.jsonl; a run may still be going on."""
    output: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """File to write; by default plots/curves.png in the only run. Replaced if it is there."""
    smoothing: Annotated[float, arg(metavar="FRACTION")] = 0.0
    """Fraction of a run's length, 0 to 1, over which curves are averaged; the raw curves stay, faint."""

    def run(self) -> None:
        """Runs the command."""
        report({"output": str(plot_runs(self.runs, self.output, smoothing=self.smoothing))})
