"""``timm-mvhybrid analyse``: models + images → a folder with tables and a page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg, subcommand

from ..analysis.eigenvalues import analyse_eigenvalues
from ..analysis.findings import Findings, check_folder, write_findings
from ..analysis.frequency import FrequencyOptions, analyse_frequency
from ..analysis.options import Advance, AnalysisOptions
from ..analysis.stability import StabilityOptions, analyse_stability
from ..runtime.atomic_file import claimed
from ..version import __version__
from .messages import report
from .progress import RunDisplay, RunLog


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisOutput:
    """Where findings go.

    Attributes:
        output: Folder for results.json, a CSV a table, and index.html.
        overwrite: Replace earlier findings in that folder.
        log: Append start and end as JSON lines.
    """

    output: Annotated[Path, arg(metavar="DIR")]
    overwrite: bool = False
    log: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None

    def write(self, name: str, analyse: Any, options: AnalysisOptions) -> None:
        """Runs an analysis with a bar, and writes what it finds."""
        check_folder(self.output, overwrite=self.overwrite)
        log = RunLog(self.log, 1)
        log.write("start", version=__version__, analysis=name, models=list(options.models))
        with claimed(self.output / "results.json"):
            try:
                with RunDisplay(description=f"analysing {name}") as display:
                    advance: Advance = display.show
                    findings: Findings = analyse(options, advance=advance)
                page = write_findings(findings, self.output, overwrite=self.overwrite)
            except BaseException as error:
                log.fail(error)
                raise
        log.write("done", page=str(page))
        report({"page": str(page), "models": [model.label for model in findings.models]})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eigenvalues:
    """Say which eigenvalues the scans have, and how many tokens they remember on images, trained beside random."""

    options: Annotated[AnalysisOptions, arg(name="")]
    out: Annotated[AnalysisOutput, arg(name="")]

    def run(self) -> None:
        """Runs the command."""
        self.out.write("eigenvalues", analyse_eigenvalues, self.options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frequency:
    """Say what scans, models and tokens do to spatial frequencies on images, trained beside random."""

    options: Annotated[FrequencyOptions, arg(name="")]
    out: Annotated[AnalysisOutput, arg(name="")]

    def run(self) -> None:
        """Runs the command."""
        self.out.write("frequency", analyse_frequency, self.options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stability:
    """Say how large gradients are when training starts, by kind of parameter, and what blocks do to the size of tokens."""

    options: Annotated[StabilityOptions, arg(name="")]
    out: Annotated[AnalysisOutput, arg(name="")]

    def run(self) -> None:
        """Runs the command."""
        self.out.write("stability", analyse_stability, self.options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analyse:
    """Examine models: eigenvalues and memory of the scans, frequency response, stability at the start."""

    command: Annotated[
        Annotated[Eigenvalues, subcommand("eigenvalues")]
        | Annotated[Frequency, subcommand("frequency")]
        | Annotated[Stability, subcommand("stability")],
        arg(name=""),
    ]

    when_interrupted = "nothing was written; run it again"

    def run(self) -> None:
        """Runs the command."""
        self.command.run()
