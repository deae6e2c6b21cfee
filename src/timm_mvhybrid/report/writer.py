"""Result of any task → a folder with results.json, tables in Markdown and LaTeX, and one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..runtime.atomic_file import write_files
from ..runtime.errors import EvaluationError, writing
from .drawing import require_matplotlib
from .page import result_page, result_warnings
from .result import Result
from .table import Table, to_latex, to_markdown
from .tables import result_tables

_FILES = ("results.json", "tables.md", "tables.tex", "index.html")


def check_report_folder(folder: str | Path, *, overwrite: bool) -> Path:
    """Finds out whether a report can be written, before time is spent on its content.

    Args:
        folder: Folder of the report; it is made if there is none.
        overwrite: Whether an earlier report may be replaced.

    Returns:
        The folder.

    Raises:
        EvaluationError: If it holds a report that may not be replaced, or matplotlib is missing.
        OutputError: If it cannot be made.
    """
    require_matplotlib()
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if not overwrite and (folder / name).exists():
            raise EvaluationError(f"{folder / name}: exists already; replace the report with --overwrite")
    return folder


def write_report(result: Result, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the report of one result.

    Args:
        result: The result.
        folder: Folder to write: `results.json`, `tables.md`, `tables.tex`, `index.html`. Other files stay.
        overwrite: Whether an earlier report may be replaced.

    Returns:
        The page.

    Raises:
        EvaluationError: If the folder holds a report that may not be replaced.
        OutputError: If the disk does not take all of it; then none of it is written.
    """
    folder = check_report_folder(folder, overwrite=overwrite)
    tables = result_tables(result)
    text = result_page(result, tables)
    return write_documents(folder, tables, [*result_warnings([result]), *result.notes], text, result)


def write_documents(
    folder: Path, tables: Sequence[Table], remarks: Sequence[str], page: str, result: Result | None = None
) -> Path:
    """Writes tables and page, all or none.

    Args:
        folder: An existing folder.
        tables: The tables.
        remarks: What stands above the tables, one sentence or more each.
        page: The page.
        result: What they show, for `results.json`; None for what has none of its own.

    Raises:
        OutputError: If the disk does not take them.
    """
    quoted = "".join(f"> {remark}\n>\n" for remark in remarks)
    commented = "".join(f"% {remark}\n" for remark in remarks)
    contents = {
        "tables.md": f"{quoted}\n{to_markdown(tables)}" if quoted else to_markdown(tables),
        "tables.tex": commented + to_latex(tables),
        "index.html": page,
    }
    if result is not None:
        contents["results.json"] = result.to_json()
    write_files({folder / name: text for name, text in contents.items()})
    return folder / "index.html"
