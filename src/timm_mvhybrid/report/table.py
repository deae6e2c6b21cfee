"""Tables without a format of their own: cells → Markdown, LaTeX, HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any
from urllib.parse import quote

MISSING = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "≤": r"$\le$",
    "²": r"\textsuperscript{2}",
    "…": r"\dots{}",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        value: What the column is sorted by; None sorts last.
        best: Whether it is the best of its kind, printed bold.
        picture: On the page, a a link to a picture that the text describes: its address, relative to the page.
            The script of ``slide_table`` shows it when it is scrolled into view.
    """

    text: str
    value: float | str | None = None
    best: bool = False
    picture: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table.

    Attributes:
        name: Short, of letters and hyphens; names the table within a document.
        caption: What it shows, one sentence or more.
        columns: Headings.
        rows: Cells, as many in a row as there are headings.
        num_text_columns: Leading columns that hold text; the others hold numbers and are aligned to the right.
        num_references: Trailing columns that were not measured here, set apart on the page.
        page_only: Whether it is too long for a document and belongs on the page alone.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_text_columns: int = 1
    num_references: int = 0
    page_only: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.name}: {len(row)} cells for {len(self.columns)} columns")

    @staticmethod
    def of(
        name: str,
        caption: str,
        items: Iterable[Any],
        columns: Sequence[tuple[str, Callable[[Any], Cell]]],
        num_text_columns: int = 1,
    ) -> Table:
        """Makes a table with a row for each item.

        Args:
            name: As in the table.
            caption: As in the table.
            items: What is listed.
            columns: Headings, each with what it shows of an item.
            num_text_columns: As in the table.
        """
        return Table(
            name=name,
            caption=caption,
            columns=tuple(heading for heading, _ in columns),
            rows=tuple(tuple(cell(item) for _, cell in columns) for item in items),
            num_text_columns=num_text_columns,
        )


def text_cell(text: str) -> Cell:
    """Makes a cell of text."""
    return Cell(text=text, value=text.casefold())


def signed(text: str) -> str:
    """Writes a proper minus sign."""
    return text.replace("-", "−")


def number_cell(
    value: float | None, digits: int = 3, spread: float | None = None, sign: bool = False
) -> Cell:
    """Makes a cell of a number, with its spread where there is one.

    Args:
        value: The number; None and NaN are shown as missing.
        digits: Decimals.
        spread: Shown after ±.
        sign: Whether to show a plus sign, too.
    """
    if value is None or math.isnan(value):
        return Cell(text=MISSING)
    text = signed(f"{value:{'+' if sign else ''}.{digits}f}")
    if spread is not None and not math.isnan(spread):
        text += f" ± {spread:.{digits}f}"
    return Cell(text=text, value=value)


def mark_best(cells: Sequence[Cell], *, higher: bool) -> list[Cell]:
    """Marks the best of several numbers, and all that are shown as the same.

    Returns:
        The cells; unchanged where fewer than two have a number.
    """
    numbers = [cell.value for cell in cells if isinstance(cell.value, int | float)]
    if len(numbers) < 2:
        return list(cells)
    best = max(numbers) if higher else min(numbers)
    shown = {cell.text.split(" ")[0] for cell in cells if cell.value == best}
    return [replace(cell, best=True) if cell.text.split(" ")[0] in shown else cell for cell in cells]


def to_markdown(tables: Iterable[Table]) -> str:
    """Writes tables as Markdown.

    Returns:
        The text; tables for the page alone are left out.
    """
    blocks = []
    for table in tables:
        if table.page_only:
            continue
        rules = ["---" if index < table.num_text_columns else "---:" for index in range(len(table.columns))]
        lines = [[_markdown(column) for column in table.columns], rules]
        for row in table.rows:
            texts = [_markdown(cell.text) for cell in row]
            lines.append(
                [f"**{text}**" if cell.best else text for cell, text in zip(row, texts, strict=True)]
            )
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        blocks.append(f"{_markdown(table.caption)}\n\n{body}\n")
    return "\n".join(blocks)


def _markdown(text: str) -> str:
    return re.sub(r"([\\|<*`])", r"\\\1", text)


def to_latex(tables: Iterable[Table]) -> str:
    """Writes tables as LaTeX, for the package booktabs.

    Returns:
        The text; tables for the page alone are left out.
    """
    blocks = ["% needs \\usepackage{booktabs}\n"]
    for table in tables:
        if table.page_only:
            continue
        align = "".join("l" if index < table.num_text_columns else "r" for index in range(len(table.columns)))
        rows = [
            " & ".join(rf"\textbf{{{_latex(cell.text)}}}" if cell.best else _latex(cell.text) for cell in row)
            for row in table.rows
        ]
        head = " & ".join(_latex(column) for column in table.columns)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def to_html(table: Table) -> str:
    """Writes a table whose columns can be sorted by the page's script."""
    kinds = ["text" if index < table.num_text_columns else "number" for index in range(len(table.columns))]
    for index in range(len(kinds) - table.num_references, len(kinds)):
        kinds[index] += " reference"
    heads = []
    for index, (column, kind) in enumerate(zip(table.columns, kinds, strict=True)):
        # pictures have no order
        of_pictures = any(row[index].picture for row in table.rows)
        title = escape(column) if of_pictures else f'<button type="button">{escape(column)}</button>'
        heads.append(f'<th scope="col" class="{kind}">{title}</th>')
    rows = []
    for row in table.rows:
        cells = []
        for index, cell in enumerate(row):
            kind = kinds[index]
            tag = 'th scope="row"' if index == 0 else "td"
            value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
            text = escape(cell.text)
            content = f"<strong>{text}</strong>" if cell.best else text
            if cell.picture:
                address = escape(quote(cell.picture))
                content = f'<a class="picture" href="{address}">{text}</a>'
            cells.append(f'<{tag} class="{kind}"{value}>{content}</{tag.split(" ")[0]}>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    label = escape(re.sub(r"\s+", " ", table.caption))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f'<table id="table-{escape(table.name)}"><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
