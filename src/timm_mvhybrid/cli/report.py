"""``timm-mvhybrid report``: results.json → tables and pages, alone or side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from ..finetune.presentation import FinetunePresentation
from ..report import compare_reports, read_result, register_presentation, write_report
from .messages import report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Put several evaluations side by side, with the paper's published numbers as a labelled reference."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR")]
    """Folders that 'timm-mvhybrid evaluate' wrote, or runs that it was given by --run."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder for tables.md, tables.tex and index.html."""
    overwrite: bool = False
    """Replace an earlier comparison."""

    def run(self) -> None:
        """Runs the command."""
        report({"page": str(compare_reports(self.folders, self.output, overwrite=self.overwrite))})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Render:
    """Write tables and page of one evaluation again, from its results.json."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder with results.json, or the file."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder to write."""
    overwrite: bool = False
    """Replace an earlier report."""

    def run(self) -> None:
        """Runs the command."""
        register_presentation(FinetunePresentation())
        page = write_report(read_result(self.folder), self.output, overwrite=self.overwrite)
        report({"page": str(page)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Compare evaluations, or render one again."""

    command: Annotated[
        Annotated[Compare, subcommand("compare")] | Annotated[Render, subcommand("render")], arg(name="")
    ]

    def run(self) -> None:
        """Runs the command."""
        self.command.run()
