"""Finished cells → one comparison: scores over seeds, paired tests against the first variant, curves, time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ..report import Result
from ..report.line_chart import line_chart
from ..report.page import figure, page, result_warnings, section
from ..report.table import Cell as TableCell
from ..report.table import Table, number_cell, text_cell, to_html
from ..report.writer import result_tables, write_documents
from ..runtime.atomic_file import claimed
from ..runtime.codec import dump, encode
from .cell_record import CellRecord, read_failure, read_record
from .checking import CheckedStudy
from .errors import StudyError
from .same_batches import first_difference
from .study_file import Study, digest_of
from .variant_results import result_of_variants

STUDY_FILE = "study.json"
_SCHEMA = 1
_CURVES = {
    "loss/total": "loss",
    "loss/ibot": "loss of masked patches",
    "loss/dino_global": "loss of class tokens",
    "rankme": "RankMe",
}


def write_page(checked: CheckedStudy, *, skipped: Sequence[str] = ()) -> Path:
    """Writes the comparison of the cells that are finished: ``index.html``, tables, and ``study.json`` with the numbers.

    From the same results it is the same, whatever interrupted the cells.

    Args:
        checked: The study.
        skipped: Cells that another process is at.

    Returns:
        The page.

    Raises:
        StudyError: No cell is finished, or cells of the same data and seed saw different images or crops.
        OutputError: The disk does not take it.
    """
    study = checked.study
    records: dict[str, CellRecord] = {}
    for cell in study.cells:
        record = read_record(cell.folder)
        if record is not None and not checked.changes(cell.name):
            records[cell.name] = record
    if not records:
        raise StudyError(f"{study.output}: no cell is finished yet, so that there is nothing to compare")
    notes = compare_batches(list(records.values()))
    warnings = _missing(checked, records, skipped)
    found = {task: result_of_variants(study, task, records, checked.tasks[task]) for task in checked.tasks}
    results = {task: result for task, result in found.items() if result is not None}
    tables, sections = [], []
    for task, result in results.items():
        own = [replace(table, name=f"{task}-{table.name}") for table in result_tables(result)]
        tables += own
        sections.append(section(f"Evaluation {task}", "".join(map(to_html, own))))
        notes += [f"{task}: {remark}" for remark in result.notes]
    curves = _curves(study, records)
    if curves:
        sections.append(section("Pretraining", curves, "Mean over the seeds of each variant."))
    cells, variants = _cells(records), _variants(study, records)
    tables += [variants, cells]
    sections.append(section("Cells", to_html(variants) + to_html(cells)))
    warnings += result_warnings(list(results.values()))
    text = page(
        title=f"Study {study.name}",
        lead=", ".join(study.variants),
        warnings=warnings,
        notes=notes,
        sections=sections,
        provenance={task: result.provenance for task, result in results.items()},
        footer=f"The same numbers stand in {STUDY_FILE}.",
    )
    with claimed(study.output / STUDY_FILE, wait=True):
        return write_documents(
            study.output,
            tables,
            [*warnings, *notes],
            text,
            more={STUDY_FILE: _as_json(study, records, results)},
        )


def compare_batches(records: Sequence[CellRecord]) -> list[str]:
    """Asserts that cells of the same data and seed saw the same images and crops, at every step that they logged.

    Returns:
        What a reader must know of it, one sentence each.

    Raises:
        StudyError: They did not; the message names the cells and the step.
    """
    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(record.data_group, []).append(record)
    notes = []
    for first, *others in groups.values():
        seen = dict(first.seen)
        for other in others:
            theirs = dict(other.seen)
            step = first_difference(seen, theirs)
            if step is not None:
                raise StudyError(
                    f"cells {first.cell} and {other.cell} have the same data and seed, and saw different images or crops at step "
                    f"{step}: they cannot be compared; run one of them anew"
                )
            if not seen.keys() & theirs.keys():
                notes.append(
                    f"Cells {first.cell} and {other.cell} logged no common step, so that nothing shows that they saw the same."
                )
    if len({record.data_group for record in records}) > len({record.seed for record in records}):
        notes.append(
            "Variants differ in data, crops or batch size, as the study says: cells of one seed did not all see the same."
        )
    return notes


def _missing(checked: CheckedStudy, records: Mapping[str, CellRecord], skipped: Sequence[str]) -> list[str]:
    """Says which cells are not on the page, and why."""
    reasons = []
    for cell in checked.study.cells:
        if cell.name in records:
            record = records[cell.name]
            lacking = [task for task in checked.tasks if task not in record.results]
            if lacking:
                reasons.append(f"{cell.name} lacks {', '.join(lacking)}")
            continue
        changes = checked.changes(cell.name)
        if changes:
            reasons.append(f"{cell.name} was finished before {' and '.join(changes)} changed")
            continue
        failure = read_failure(cell.folder)
        state = "is being run" if cell.name in skipped else "is not finished"
        reasons.append(f"{cell.name} {state}" if failure is None else f"{cell.name} failed: {failure}")
    if not reasons:
        return []
    return [f"{len(reasons)} of {len(checked.study.cells)} cells are missing: {'; '.join(reasons)}."]


def _curves(study: Study, records: Mapping[str, CellRecord]) -> str:
    """Draws what was logged over the steps, each variant as the mean over its seeds."""
    figures = []
    for metric, label in _CURVES.items():
        curves: dict[str, list[tuple[float, float]]] = {}
        for variant in study.variants:
            by_step: dict[int, list[float]] = {}
            mine = [record for record in records.values() if record.variant == variant]
            for record in mine:
                for step, value in record.curves.get(metric, ()):
                    if value is not None:
                        by_step.setdefault(step, []).append(value)
            curves[variant] = [
                (step, fmean(values)) for step, values in sorted(by_step.items()) if len(values) == len(mine)
            ]
        drawn = line_chart(label, curves, x_label="step", y_label=label)
        if drawn is not None:
            figures.append(figure(metric.replace("/", "-"), drawn, label.capitalize()))
    return "".join(figures)


def _variants(study: Study, records: Mapping[str, CellRecord]) -> Table:
    def mean(variant: str, value: Callable[[CellRecord], float]) -> float | None:
        values = [value(record) for record in records.values() if record.variant == variant]
        return fmean(values) if values else None

    columns: list[tuple[str, Callable[[str], TableCell]]] = [
        ("Variant", text_cell),
        ("Cells", lambda name: number_cell(sum(one.variant == name for one in records.values()), 0)),
        ("Parameters, M", lambda name: number_cell(mean(name, lambda one: one.num_parameters / 1e6), 2)),
        ("Images/s", lambda name: number_cell(mean(name, lambda one: one.images_per_second), 1)),
        ("Minutes", lambda name: number_cell(mean(name, lambda one: sum(one.seconds.values()) / 60), 2)),
    ]
    caption = (
        "Variants: cells that are finished, size of the backbone, speed of the training, wall time of a cell."
    )
    return Table.of("variants", caption, study.variants, columns)


def _cells(records: Mapping[str, CellRecord]) -> Table:
    def minutes(*stages: str) -> Callable[[CellRecord], TableCell]:
        return lambda one: number_cell(
            sum(value for name, value in one.seconds.items() if name.split()[0] in stages) / 60, 2
        )

    columns: list[tuple[str, Callable[[CellRecord], TableCell]]] = [
        ("Cell", lambda one: text_cell(one.cell)),
        ("Images and crops", lambda one: text_cell(digest_of(one.seen)[:12])),
        ("Weights", lambda one: text_cell(one.weights_sha256[:12])),
        ("Images", lambda one: number_cell(one.num_images, 0)),
        ("Images/s", lambda one: number_cell(one.images_per_second, 1)),
        ("Pretraining, min", minutes("pretrain")),
        ("Evaluation, min", minutes("evaluate")),
        ("Other, min", minutes("export", "other")),
        ("Other, %", lambda one: number_cell(100 * one.overhead, 1)),
        ("Starts", lambda one: number_cell(one.num_starts, 0)),
    ]
    caption = (
        "Cells: digest of the images and crops of all logged steps, digest of the weights, wall time over all starts. Images/s "
        "are those of the steps; other is export, checks and bookkeeping."
    )
    return Table.of("cells", caption, list(records.values()), columns, num_text_columns=3)


def _as_json(study: Study, records: Mapping[str, CellRecord], results: Mapping[str, Result]) -> str:
    cells = []
    for record in records.values():
        values = {name: value for name, value in encode(record).items() if name not in ("results", "curves")}
        values["images_per_second"], values["overhead"] = record.images_per_second, record.overhead
        cells.append(values)
    return dump(
        {
            "schema": _SCHEMA,
            "study": study.name,
            "variants": study.variants,
            "missing": [cell.name for cell in study.cells if cell.name not in records],
            "cells": cells,
            "results": {task: json.loads(result.to_json()) for task, result in results.items()},
        }
    )
