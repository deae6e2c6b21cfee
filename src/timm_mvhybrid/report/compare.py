"""Several evaluations side by side: folders → tables with the paper's numbers as a reference, and one page."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..probes.resampling import MetricSummary
from ..runtime.errors import EvaluationError
from .expression_charts import slope_chart
from .expression_tables import panel_name
from .metrics import EXPRESSION_METRICS, metric, protocol_label
from .page import figure, page, result_warnings, section
from .published import Published, published
from .results import (
    ClassificationResult,
    ExpressionResult,
    Result,
    RetrievalResult,
    SlidesResult,
    SurvivalResult,
    read_result,
)
from .table import Cell, Table, mark_best, number_cell, text_cell, to_html
from .writer import check_report_folder, write_documents

_SETTINGS = {
    "expression": ("dataset", "panel", "panel_size", "panel_selected_on", "preset", "nan_policy", "samples"),
    "classification": ("dataset", "classes", "layout"),
    "retrieval": ("dataset", "layout"),
    "slides": ("dataset", "positive_label", "negative_label"),
    "survival": ("dataset", "time_unit"),
}


def compare_reports(folders: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> Path:
    """Puts the models of several evaluations side by side.

    Args:
        folders: Folders that `evaluate` wrote, or their results.json.
        output: Folder to write: `tables.md`, `tables.tex`, `index.html`.
        overwrite: Whether an earlier comparison may be replaced.

    Returns:
        The page.

    Raises:
        EvaluationError: If a folder holds no result, the same one is given twice, or the output may not be replaced.
    """
    resolved = [Path(folder).resolve() for folder in folders]
    twice = [str(path) for path, count in Counter(resolved).items() if count > 1]
    if not folders or twice:
        raise EvaluationError(f"{', '.join(twice) or 'no folder'}: name each evaluation once")
    if Path(output).resolve() in resolved:
        raise EvaluationError(f"{output}: is one of the evaluations; choose another --output")
    found = [_named(read_result(folder), path) for folder, path in zip(folders, resolved, strict=True)]
    found = _relabelled(found)
    output = check_report_folder(output, overwrite=overwrite)

    groups: dict[str, list[tuple[str, Result]]] = defaultdict(list)
    for name, result in found:
        groups[result.task].append((name, result))
    tables, sections, notes = [], [], []
    for task, group in groups.items():
        notes += _differences(task, group)
        results = [result for _, result in group]
        task_tables = _tables(task, results)
        tables += task_tables
        parts = [to_html(table) for table in task_tables]
        merged = _merged(results)
        slopes = slope_chart(merged) if merged is not None else None
        if slopes:
            parts.append(figure("slope", slopes, "Random folds against left-out studies."))
        sections.append(section(task.capitalize(), "".join(parts)))
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


def _named(result: Result, path: Path) -> tuple[str, Result]:
    return (path.parent.name if path.is_file() else path.name), result


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
        relabelled.append((unique, _renamed(result, labels)))
    return relabelled


def _renamed(result: Result, labels: dict[str, str]) -> Result:
    if not labels:
        return result
    changes: dict[str, Any] = {
        "models": tuple(
            dataclasses.replace(model, label=labels.get(model.label, model.label)) for model in result.models
        )
    }
    for name in ("scores", "drops", "maps"):
        items = getattr(result, name, None)
        if items is not None:
            changes[name] = tuple(
                dataclasses.replace(item, model=labels.get(item.model, item.model)) for item in items
            )
    return dataclasses.replace(result, **changes)


def _differences(task: str, group: Sequence[tuple[str, Result]]) -> list[str]:
    """Finds why numbers side by side may not be comparable."""
    notes = []
    first_name, first = group[0]
    for name, other in group[1:]:
        differing = [field for field in _SETTINGS[task] if getattr(other, field) != getattr(first, field)]
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


def _merged(results: Sequence[Result]) -> ExpressionResult | None:
    expression = [result for result in results if isinstance(result, ExpressionResult)]
    if not expression:
        return None
    return dataclasses.replace(
        expression[0],
        models=tuple(model for result in expression for model in result.models),
        scores=tuple(scores for result in expression for scores in result.scores),
        drops=tuple(drop for result in expression for drop in result.drops),
    )


def _tables(task: str, results: Sequence[Result]) -> list[Table]:
    if task == "expression":
        panels: dict[tuple[str, int], list[ExpressionResult]] = defaultdict(list)
        for result in results:
            if isinstance(result, ExpressionResult):
                panels[result.panel, result.panel_size].append(result)
        return [_expression_table(group) for group in panels.values()]
    columns: dict[str, dict[tuple[str, str], tuple[float, float | None]]] = {}
    for result in results:
        columns |= _columns(result)
    rows = list(dict.fromkeys(key for column in columns.values() for key in column))
    return [
        _side_by_side(
            task,
            f"{task.capitalize()}; mean ± standard deviation over folds. The paper's repository publishes no numbers "
            "for this task.",
            rows,
            columns,
            {},
        )
    ]


def _summary(
    setting: str, num_folds: int, summaries: Sequence[MetricSummary]
) -> dict[tuple[str, str], tuple[float, float | None]]:
    return {
        (setting, summary.metric): (summary.mean, summary.std if num_folds > 1 else None)
        for summary in summaries
    }


def _columns(result: Result) -> dict[str, dict[tuple[str, str], tuple[float, float | None]]]:
    columns: dict[str, dict[tuple[str, str], tuple[float, float | None]]] = defaultdict(dict)
    if isinstance(result, ExpressionResult):
        for scores in result.scores:
            columns[scores.model] |= {
                key: value
                for key, value in _summary(scores.protocol, len(scores.folds), scores.summary).items()
                if key[1] in EXPRESSION_METRICS
            }
    elif isinstance(result, ClassificationResult):
        for classified in result.scores:
            columns[classified.model] |= _summary(classified.probe, len(classified.folds), classified.summary)
    elif isinstance(result, RetrievalResult):
        for retrieved in result.scores:
            columns[retrieved.model]["prototypes", "accuracy"] = (retrieved.accuracy, None)
            for k, value in retrieved.mean_precision.items():
                columns[retrieved.model]["prototypes", f"precision@{k}"] = (value, None)
    elif isinstance(result, SlidesResult | SurvivalResult):
        for patients in result.scores:
            columns[patients.model] |= _summary("patient folds", len(patients.folds), patients.summary)
    return columns


def _expression_table(results: Sequence[ExpressionResult]) -> Table:
    columns: dict[str, dict[tuple[str, str], tuple[float, float | None]]] = {}
    for result in results:
        columns |= _columns(result)
        for drop in result.drops:
            if drop.percent is not None:
                columns[drop.model]["drop, %", drop.metric] = (drop.percent, None)
    rows = list(dict.fromkeys(key for column in columns.values() for key in column))
    references: dict[str, Published] = {}
    for protocol in dict.fromkeys(row[0] for row in rows):
        for one in published(results[0].panel, protocol):
            # the benchmark's and the extended data's rows of one model are different measurements
            name = one.label if one.drops or protocol == "csv" else f"{one.label}, {protocol}"
            if name in references and references[name].source != one.source:
                name = f"{name} (HEST benchmark)" if protocol == "csv" else f"{name} (extended)"
            references.setdefault(name, one)
    sources = dict.fromkeys(one.source for one in references.values())
    caption = f"Expression, {panel_name(results[0])}; mean ± standard deviation over folds."
    if sources:
        caption += (
            f" Reference columns were published, not measured here, on other data: {'; '.join(sources)}."
        )
    else:
        caption += " The paper published no numbers for this setting."
    return _side_by_side("expression", caption, rows, columns, references)


def _side_by_side(
    name: str,
    caption: str,
    rows: Sequence[tuple[str, str]],
    columns: dict[str, dict[tuple[str, str], tuple[float, float | None]]],
    references: dict[str, Published],
) -> Table:
    written: list[tuple[Cell, ...]] = []
    for setting, metric_name in rows:
        shown = metric(metric_name)
        drop = setting == "drop, %"
        digits = 1 if drop else shown.digits
        cells = []
        for column in columns.values():
            value, spread = column.get((setting, metric_name), (None, None))
            cells.append(number_cell(value, digits, spread))
        cells = mark_best(cells, higher=shown.higher and not drop)
        for one in references.values():
            if drop:
                cells.append(number_cell(one.drops.get(metric_name), digits))
            else:
                value, spread = one.values.get((setting, metric_name), (None, None))
                cells.append(number_cell(value, digits, spread))
        written.append((text_cell(protocol_label(setting)), text_cell(shown.label), *cells))
    return Table(
        name=name,
        caption=caption,
        columns=("Setting", "Metric", *columns, *references),
        rows=tuple(written),
        num_text_columns=2,
        num_references=len(references),
    )
