"""What an analysis found: tables, charts, remarks → results.json, a CSV a table, and one HTML page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report.drawing import require_matplotlib
from ..report.line_chart import line_chart
from ..report.page import figure, page, section, standing_warnings
from ..report.table import Cell, Table, signed, text_cell, to_html
from ..runtime.atomic_file import write_files, writing
from ..runtime.codec import dump
from ..runtime.errors import EvaluationError
from ..runtime.provenance import ModelRecord, Provenance

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Records:
    """A table of numbers.

    Attributes:
        name: Its name, and that of its CSV file.
        caption: What it shows, with units.
        rows: Its rows, all of the same columns.
        shown: Whether it stands on the page; every table is in the CSV and JSON files.
    """

    name: str
    caption: str
    rows: Sequence[Row]
    shown: bool = True


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A chart.

    Attributes:
        name: Its title.
        curves: Name → points.
        x_label: At the horizontal axis, with its unit.
        y_label: At the vertical axis, with its unit.
        logarithmic: Whether the vertical axis is.
        caption: What a reader has to know to read it.
    """

    name: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    logarithmic: bool = False
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an analysis found.

    Attributes:
        analysis: ``eigenvalues``, ``frequency`` or ``stability``.
        title: Of the page.
        models: The models, with their weights.
        tables: The numbers.
        charts: What is drawn of them.
        notes: What a reader has to know, a sentence or more each.
        provenance: Where the numbers come from.
    """

    analysis: str
    title: str
    models: Sequence[ModelRecord]
    tables: Sequence[Records]
    charts: Sequence[Curves]
    notes: Sequence[str]
    provenance: Provenance


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Finds out whether findings can be written, before time is spent on them.

    Raises:
        EvaluationError: The folder holds some that may not be replaced, or matplotlib is missing.
        OutputError: The folder cannot be made.
    """
    require_matplotlib()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "index.html"):
        if not overwrite and (folder / name).exists():
            raise EvaluationError(f"{folder / name}: exists already; replace it with `overwrite=True`")


def write_findings(findings: Findings, folder: Path, *, overwrite: bool = False) -> Path:
    """Writes ``results.json``, ``TABLE.csv`` and ``index.html``, all or none.

    Returns:
        The page.

    Raises:
        EvaluationError: The folder holds findings that may not be replaced.
        OutputError: The disk does not take them.
    """
    check_folder(folder, overwrite=overwrite)
    contents: dict[Path, bytes | str] = {
        folder / f"{table.name}.csv": _csv(table.rows) for table in findings.tables
    }
    contents[folder / "results.json"] = dump(findings)
    contents[folder / "index.html"] = _page(findings)
    write_files(contents)
    return folder / "index.html"


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _page(findings: Findings) -> str:
    sections = []
    for chart in findings.charts:
        svg = line_chart(
            chart.name,
            chart.curves,
            x_label=chart.x_label,
            y_label=chart.y_label,
            logarithmic=chart.logarithmic,
        )
        if svg is not None:
            name = chart.name.lower().replace(" ", "-")
            sections.append(section(chart.name, figure(name, svg, chart.caption)))
    sections += [
        section(table.name.replace("-", " ").capitalize(), to_html(_table(table)))
        for table in findings.tables
        if table.shown and table.rows
    ]
    random = list(dict.fromkeys(model.name for model in findings.models if model.weights == "random"))
    return page(
        title=findings.title,
        lead=", ".join(model.label for model in findings.models),
        warnings=standing_warnings(
            generated=["the images"] if findings.provenance.generated else [], random=random
        ),
        notes=findings.notes,
        sections=sections,
        provenance={findings.analysis: findings.provenance},
        footer="The same numbers stand in results.json and in the CSV files.",
    )


def _table(table: Records) -> Table:
    columns = list(table.rows[0])
    texts = 0
    while texts < len(columns) and all(isinstance(row[columns[texts]], str) for row in table.rows):
        texts += 1
    return Table(
        name=table.name,
        caption=table.caption,
        columns=tuple(column.replace("_", " ") for column in columns),
        rows=tuple(tuple(_cell(row[column]) for column in columns) for row in table.rows),
        num_text_columns=texts,
        page_only=True,
    )


def _cell(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text_cell(str(value))
    if math.isnan(value):
        return Cell(text="–")
    return Cell(text=signed(f"{value:.4g}"), value=float(value))
