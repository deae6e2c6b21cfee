"""``timm-mvhybrid cohort``: folder of embedded slides → a table, and one page."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.table import Table as TextTable
from tyro.conf import Positional, arg

from ..embed.overview_page import Overview, problem_table, summary_table, write_overview
from ..report.table import Table
from ..runtime.codec import encode, finite
from ..runtime.cores import num_usable_cores
from ..runtime.errors import printable
from .embed import Embed
from .flags import flags_of, in_flags
from .messages import status

_MOST_PROBLEMS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohort:
    """Show a folder of embedded slides: a table, and one page with pictures, features as colours, and failures."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of h5 files, one a slide, that 'timm-mvhybrid embed' wrote."""
    output: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder for index.html, overview.json and pictures; by default 'overview' in DIR. An earlier page of this command is
    replaced."""
    slides: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of the slides, where they are not where they were embedded from."""
    picture_size_px: Annotated[int, arg(name="picture-size", metavar="PX")] = 384
    """Longer side of the pictures."""
    num_workers: Annotated[Literal["auto"] | int, arg(metavar="auto|N")] = "auto"
    """Threads that draw; auto takes one a core, 0 the main thread."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Runs the command."""
        with status("reading") as update:
            overview = write_overview(
                self.folder,
                self.output,
                slides=self.slides,
                picture_size_px=self.picture_size_px,
                num_workers=num_usable_cores() if self.num_workers == "auto" else self.num_workers,
                words=partial(in_flags, flags=flags_of(Embed)),
                on_slide=lambda what, num, total: update(f"{what}: {num} of {total} slides"),
            )
        if self.json:
            print(json.dumps(_as_json(overview), ensure_ascii=False, allow_nan=False))
            return
        # a pipe has no width of its own, and a table cut at 80 columns would lose names
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(_as_text(summary_table(overview)))
        problems = overview.problems
        if problems:
            console.print(_as_text(problem_table(problems[:_MOST_PROBLEMS])))
        if len(problems) > _MOST_PROBLEMS:
            print(f"and {len(problems) - _MOST_PROBLEMS:,} more; the page lists all")
        print(printable(str(overview.page)))


def _as_text(table: Table) -> TextTable:
    made = TextTable(title=table.caption, title_justify="left")
    for index, column in enumerate(table.columns):
        made.add_column(
            column, justify="left" if index < table.num_text_columns else "right", overflow="fold"
        )
    for row in table.rows:
        # names may hold what Rich would take for markup, or steer the terminal
        made.add_row(*(printable(cell.text).replace("[", r"\[") for cell in row))
    return made


def _as_json(overview: Overview) -> dict[str, object]:
    return {
        "page": str(overview.page),
        **finite(overview.summary()),
        "problems": [
            {name: encode(row)[name] for name in ("slide_id", "state", "attempts", "problem")}
            for row in overview.problems
        ],
    }
