"""Several evaluations side by side: folders → tables, published numbers as a reference, and one page."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import EvaluationError
from .page import page, result_warnings, section
from .presentation import Presentation, Value, Values, presentation_of
from .result import Result, read_results
from .table import Cell, Table, mark_best, number_cell, text_cell, to_html
from .writer import check_report_folder, write_documents


def compare_reports(folders: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> Path:
    """Puts the models of several evaluations side by side.

    Args:
        folders: Folders that ``evaluate`` wrote, or their results.json, or runs that keep results of their weights.
        output: Folder to write: ``tables.md``, ``tables.tex``, ``index.html``.
        overwrite: Whether an earlier comparison may be replaced.

    Returns:
        The page.

    Raises:
        EvaluationError: A folder holds no result, the same one is given twice, or the output may not be replaced.
    """
    resolved = [Path(folder).resolve() for folder in folders]
    twice = [str(path) for path, count in Counter(resolved).items() if count > 1]
    if not folders or twice:
        raise EvaluationError(f"{', '.join(twice) or 'no folder'}: name each evaluation once")
    if Path(output).resolve() in resolved:
        raise EvaluationError(f"{output}: is one of the evaluations; choose another `output`")
    found = _relabelled([named for folder in folders for named in read_results(folder).items()])
    output = check_report_folder(output, overwrite=overwrite)

    tasks: dict[str, list[tuple[str, Result]]] = defaultdict(list)
    for name, result in found:
        tasks[result.task].append((name, result))
    tables, sections, notes = [], [], []
    for task, named in tasks.items():
        notes += _differences(named)
        results = [result for _, result in named]
        presentation = presentation_of(results[0])
        task_tables = [_side_by_side(task, presentation, group) for group in presentation.groups(results)]
        tables += task_tables
        parts = [to_html(table) for table in task_tables]
        sections.append(
            section(task.capitalize(), "".join(parts) + presentation.comparison_sections(results))
        )
    results = [result for _, result in found]
    warnings = result_warnings(results)
    text = page(
        title="Comparison of evaluations",
        lead=", ".join(model.label for result in results for model in result.models),
        warnings=warnings,
        notes=notes,
        sections=sections,
        provenance={name: result.provenance for name, result in found},
        footer=f"Put together from the results.json of {', '.join(name for name, _ in found)}.",
    )
    return write_documents(output, tables, [*warnings, *notes], text)


def _relabelled(found: list[tuple[str, Result]]) -> list[tuple[str, Result]]:
    """Makes the models' labels unique, by the folder's name where two evaluations share one."""
    counts = Counter((result.task, model.label) for _, result in found for model in result.models)
    names = Counter(name for name, _ in found)
    relabelled = []
    for index, (name, result) in enumerate(found):
        unique = name if names[name] == 1 else f"{name} {index + 1}"
        labels = {
            model.label: f"{model.label} ({unique})"
            for model in result.models
            if counts[result.task, model.label] > 1
        }
        relabelled.append((unique, _renamed(result, labels) if labels else result))
    return relabelled


def _renamed(result: Result, labels: dict[str, str]) -> Result:
    def rename(items: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(dataclasses.replace(one, model=labels.get(one.model, one.model)) for one in items)

    return dataclasses.replace(
        result,
        models=tuple(
            dataclasses.replace(model, label=labels.get(model.label, model.label)) for model in result.models
        ),
        folds=rename(result.folds),
        summaries=rename(result.summaries),
        scores=tuple(one._replace(model=labels.get(one.model, one.model)) for one in result.scores),
    )


def _differences(named: Sequence[tuple[str, Result]]) -> list[str]:
    """Finds why numbers side by side may not be comparable."""
    notes = []
    first_name, first = named[0]
    for name, other in named[1:]:
        settings = [{"dataset": one.dataset, **one.settings} for one in (other, first)]
        differing = [
            key
            for key in dict.fromkeys((*settings[1], *settings[0]))
            if settings[0].get(key) != settings[1].get(key)
        ]
        if other.provenance.data != first.provenance.data:
            differing.append("input files")
        if other.provenance.seed != first.provenance.seed:
            differing.append("seed")
        if differing:
            fields = ", ".join(field.replace("_", " ") for field in differing)
            notes.append(
                f"{first_name} and {name} differ in {fields}: their numbers are not directly comparable."
            )
    return notes


def _side_by_side(name: str, presentation: Presentation, results: Sequence[Result]) -> Table:
    columns: dict[str, Values] = {}
    for result in results:
        columns |= presentation.values(result)
    references = presentation.references(results)
    caption = presentation.comparison_caption(results)
    if references:
        sources = "; ".join(dict.fromkeys(one.source for one in references))
        caption += f" Reference columns were published, not measured here, on other data: {sources}."
    rows: list[tuple[Cell, ...]] = []
    for key in dict.fromkeys(key for column in columns.values() for key in column):
        shown = next(column[key] for column in columns.values() if key in column)
        cells = []
        for column in columns.values():
            found = column.get(key, Value(value=None))
            cells.append(number_cell(found.value, shown.digits, found.spread))
        cells = mark_best(cells, higher=shown.higher)
        for reference in references:
            found = reference.values.get(key, Value(value=None))
            cells.append(number_cell(found.value, shown.digits, found.spread))
        rows.append((*map(text_cell, key), *cells))
    return Table(
        name=name,
        caption=caption,
        columns=("Setting", "Metric", *columns, *(one.label for one in references)),
        rows=tuple(rows),
        num_text_columns=2,
        num_references=len(references),
    )
