"""Result of any task → its tables → a folder with results.json, tables in Markdown and LaTeX, and one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.atomic_file import make_folder, write_files
from ..runtime.errors import EvaluationError
from ..runtime.provenance import ModelRecord
from .drawing import require_matplotlib
from .page import result_page, result_warnings
from .presentation import Presentation, metric_of, presentation_of
from .result import Result
from .table import Cell, Table, number_cell, text_cell, to_latex, to_markdown

Column = tuple[str, Callable[[Any], Cell]]


def result_tables(result: Result) -> list[Table]:
    """Makes the tables of a result.

    Returns:
        Scores, the task's own tables, folds, confidence intervals, paired comparisons, and the models.
    """
    presentation = presentation_of(result)
    tables = [presentation.headline(result), *presentation.tables(result)]
    more = (
        _folds(result, presentation),
        _intervals(result, presentation),
        _comparisons(result, presentation),
    )
    return [*tables, *(table for table in more if table.rows), _models(result)]


def _folds(result: Result, presentation: Presentation) -> Table:
    several = len(result.folds) > len({(fold.model, fold.protocol) for fold in result.folds})

    def score(name: str) -> Column:
        metric = metric_of(result, name)
        return metric.label, lambda fold: number_cell(
            result.fold_values(fold.model, fold.protocol, name).get(fold.name), metric.digits
        )

    def fact(name: str) -> Column:
        heading = name.removeprefix("num_").replace("_", " ").capitalize()
        return heading, lambda fold: _fact_cell(fold.facts.get(name))

    # one value each; lists, such as the samples of a fold, are in the file alone
    facts = [
        name for fold in result.folds for name, value in fold.facts.items() if not isinstance(value, list)
    ]
    return Table.of(
        "folds",
        "Every fold: what was fitted on and what was scored, its scores, and what else is known of it.",
        result.folds if several else (),
        [
            ("Model", lambda fold: text_cell(fold.model)),
            (presentation.setting, lambda fold: text_cell(presentation.protocol(fold.protocol))),
            ("Fold", lambda fold: text_cell(fold.name)),
            ("Train", lambda fold: number_cell(fold.num_train, 0)),
            ("Test", lambda fold: number_cell(fold.num_test, 0)),
            *map(score, result.metrics),
            *map(fact, dict.fromkeys(facts)),
        ],
        num_text_columns=3,
    )


def _fact_cell(value: Any) -> Cell:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return text_cell("–" if value is None else str(value))
    return number_cell(value, 0) if isinstance(value, int) else Cell(text=f"{value:.3g}", value=value)


def _intervals(result: Result, presentation: Presentation) -> Table:
    def number(value: float, one: Any) -> Cell:
        return number_cell(value, metric_of(result, one.metric).digits)

    return Table.of(
        "intervals",
        "Bootstrap confidence intervals of the means, and what was resampled.",
        [one for one in result.summaries if one.interval is not None],
        [
            ("Model", lambda one: text_cell(one.model)),
            (presentation.setting, lambda one: text_cell(presentation.protocol(one.protocol))),
            ("Metric", lambda one: text_cell(metric_of(result, one.metric).label)),
            ("Resampled", lambda one: text_cell(one.interval.over)),
            ("Mean", lambda one: number(one.mean, one)),
            ("Low", lambda one: number(one.interval.low, one)),
            ("High", lambda one: number(one.interval.high, one)),
            ("Level, %", lambda one: number_cell(100 * one.interval.level, 0)),
        ],
        num_text_columns=4,
    )


def _comparisons(result: Result, presentation: Presentation) -> Table:
    def number(value: float | None, one: Any) -> Cell:
        return number_cell(value, metric_of(result, one.metric).digits, sign=True)

    return Table.of(
        "comparisons",
        "Models against the first on the same folds. p by flipping signs of the folds' differences, beside the "
        "smallest p that as many folds can reach; better is the fraction of pairs in which the model wins.",
        result.comparisons,
        [
            ("Pair", lambda one: text_cell(f"{one.model} − {one.baseline}")),
            (presentation.setting, lambda one: text_cell(presentation.protocol(one.protocol))),
            ("Metric", lambda one: text_cell(metric_of(result, one.metric).label)),
            ("Difference", lambda one: number(one.difference, one)),
            ("Low", lambda one: number(one.interval and one.interval.low, one)),
            ("High", lambda one: number(one.interval and one.interval.high, one)),
            ("p", lambda one: number_cell(one.p_value, 3)),
            ("Least p", lambda one: number_cell(one.smallest_p_value, 3)),
            ("Folds", lambda one: number_cell(one.num_folds, 0)),
            ("Better, %", lambda one: number_cell(100 * one.share_better, 0)),
        ],
        num_text_columns=3,
    )


def _models(result: Result) -> Table:
    def speed(model: ModelRecord) -> Cell:
        embedded = model.num_patches - model.num_cached
        return number_cell(embedded / model.seconds if model.seconds > 0 else None, 1)

    columns: list[tuple[str, Callable[[ModelRecord], Cell]]] = [
        ("Label", lambda model: text_cell(model.label)),
        ("Name", lambda model: text_cell(model.name)),
        ("Weights", lambda model: text_cell(model.weights)),
        ("SHA-256", lambda model: text_cell(model.weights_sha256[:12])),
        ("Dim", lambda model: number_cell(model.embedding_dim, 0)),
    ]
    caption = "Models and weights."
    # a page on a run of training embedded nothing
    if any(model.num_patches for model in result.models):
        caption = (
            "Models: weights, embedded patches, those taken from the cache, and the fraction of time spent waiting "
            "for patches."
        )
        columns += [
            ("Patches", lambda model: number_cell(model.num_patches, 0)),
            ("Cached", lambda model: number_cell(model.num_cached, 0)),
            ("Patches/s", speed),
            ("Waiting, %", lambda model: number_cell(100 * model.data_wait_share, 1)),
        ]
    return Table.of("models", caption, result.models, columns, num_text_columns=4)


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
    make_folder(folder)
    for name in _FILES:
        if not overwrite and (folder / name).exists():
            raise EvaluationError(
                f"{folder / name}: exists already; replace the report with `overwrite=True`"
            )
    return folder


def write_report(result: Result, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the report of one result.

    Args:
        result: The result.
        folder: Folder to write: ``results.json``, ``tables.md``, ``tables.tex``, ``index.html``. Other files stay.
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
    folder: Path,
    tables: Sequence[Table],
    remarks: Sequence[str],
    page: str,
    result: Result | None = None,
    *,
    more: Mapping[str, str] | None = None,
) -> Path:
    """Writes tables and page, all or none.

    Args:
        folder: An existing folder.
        tables: The tables.
        remarks: What stands above the tables, one sentence or more each.
        page: The page.
        result: What they show, for ``results.json``; None for what has none of its own.
        more: Further files, name → text.

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
    contents |= more or {}
    write_files({folder / name: text for name, text in contents.items()})
    return folder / "index.html"
