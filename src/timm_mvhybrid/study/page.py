"""Finished cells → one comparison: scores over seeds, paired tests against the first variant, curves, time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..report import Presentation, Result, ScoreSheet, read_result, register_presentation
from ..report.line_chart import line_chart
from ..report.page import figure, page, result_warnings, section
from ..report.presentation import presentation_of
from ..report.table import Cell as TableCell
from ..report.table import Table, number_cell, text_cell, to_html
from ..report.writer import result_tables, write_documents
from ..runtime.atomic_file import claimed
from ..runtime.codec import dump, encode
from ..runtime.provenance import ModelRecord
from .cell_record import CellRecord, read_failure, read_record
from .checking import CheckedStudy
from .errors import StudyError
from .same_batches import first_difference
from .study_file import Study, digest_of

STUDY_FILE = "study.json"
_SCHEMA = 1
_CURVES = {
    "loss/total": "loss",
    "loss/ibot": "loss of masked patches",
    "loss/dino_global": "loss of class tokens",
    "rankme": "RankMe",
}


class StudyPresentation(Presentation):
    """How an evaluation of a study is shown: variants in place of models, seeds in place of folds."""

    name = "study"

    def caption(self, result: Result) -> str:
        """Names the evaluation, and what the deviation is over."""
        over = "seeds" if result.settings["seeds"] > 1 else "the evaluation's folds"
        return f"{result.settings['evaluation']} of {result.dataset}; mean ± standard deviation over {over}."


register_presentation(StudyPresentation())


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
    found = {task: _result(study, task, records, checked.tasks[task]) for task in checked.tasks}
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


def _result(study: Study, task: str, records: Mapping[str, CellRecord], digest: str) -> Result | None:
    """Puts the results of an evaluation together: variants as models, seeds as folds; with one seed, its own folds."""
    found = [
        (cell.variant, cell.seed, records[cell.name], records[cell.name].result(task))
        for cell in study.cells
        if cell.name in records and task in records[cell.name].results
    ]
    if not found:
        return None
    first = found[0][3]
    shown = presentation_of(first).protocol
    num_seeds = len({seed for _, seed, _, _ in found})
    # variants in the study's order; the first is what others are compared with
    found.sort(key=lambda one: study.variants.index(one[0]))
    sheet = ScoreSheet(first.metrics, ddof=1 if num_seeds > 1 else 0)
    for variant, seed, _, result in found:
        add_result(sheet, variant, result, shown, seed if num_seeds > 1 else None)
    baselines = _baselines(study, task, digest)
    for label in () if baselines is None else [model.label for model in baselines.models]:
        assert baselines is not None
        add_result(sheet, label, baselines, shown, "untrained" if num_seeds > 1 else None, label)
    one = next(item for item in study.tasks if item.name == task)
    result = sheet.result(
        task="study",
        dataset=first.dataset,
        models=_models(study, found) + ([] if baselines is None else list(baselines.models)),
        options={"study": study.name, "evaluation": one.definition()},
        data=first.provenance.data,
        generated=first.provenance.generated,
        settings={"evaluation": one.task.title or one.task.name.capitalize(), "seeds": num_seeds},
        notes=_remarks(found, num_seeds),
        compared=(),
    )
    summaries = tuple(
        replace(summary, interval=_over_seeds(summary.interval) if num_seeds > 1 else summary.interval)
        for summary in result.summaries
    )
    created = max(record.finished for _, _, record, _ in found)
    return replace(
        result,
        summaries=summaries,
        comparisons=tuple(_comparisons(study, found, shown, num_seeds)),
        # the page of the same cells is the same page, whenever it is made
        provenance=replace(result.provenance, created=created),
    )


def add_result(
    sheet: ScoreSheet,
    variant: str,
    result: Result,
    shown: Callable[[str], str],
    seed: int | str | None,
    label: str | None = None,
) -> None:
    """Enters the result of a cell: as one fold, whose units are the folds of the evaluation, or fold by fold.

    Args:
        sheet: Where it goes.
        variant: Names it there.
        result: The result.
        shown: Protocol → what it is called.
        seed: Names the fold; None enters the evaluation's folds.
        label: The model's label in the result; None takes its only model.
    """
    label = result.models[0].label if label is None else label
    for protocol in dict.fromkeys(one.protocol for one in result.summaries if one.model == label):
        folds = [fold for fold in result.folds if fold.model == label and fold.protocol == protocol]
        by_metric = {
            one.metric: result.fold_values(label, protocol, one.metric)
            for one in result.summaries
            if one.model == label and one.protocol == protocol
        }
        if seed is None:
            for fold in folds:
                values = {
                    metric: by_fold[fold.name]
                    for metric, by_fold in by_metric.items()
                    if fold.name in by_fold
                }
                sheet.add(
                    variant,
                    shown(protocol),
                    fold.name,
                    values,
                    num_train=fold.num_train,
                    num_test=fold.num_test,
                )
            continue
        means = {
            one.metric: one.mean for one in result.summaries if (one.model, one.protocol) == (label, protocol)
        }
        whole = {
            metric: by_fold
            for metric, by_fold in by_metric.items()
            if len(by_fold) > 1 and all(map(math.isfinite, by_fold.values()))
        }
        sheet.add(
            variant,
            shown(protocol),
            str(seed) if isinstance(seed, str) else f"seed {seed}",
            means,
            num_train=max((fold.num_train for fold in folds), default=0),
            num_test=sum(fold.num_test for fold in folds),
            units=whole,
        )


Found = Sequence[tuple[str, int, CellRecord, Result]]


def _comparisons(study: Study, found: Found, shown: Callable[[str], str], num_seeds: int) -> list[Any]:
    """Compares every variant with the first, on the seeds that both have."""
    by_variant: dict[str, dict[int, Result]] = {}
    for variant, seed, _, result in found:
        by_variant.setdefault(variant, {})[seed] = result
    baseline = study.variants[0]
    comparisons: list[Any] = []
    for variant in study.variants[1:]:
        common = sorted(by_variant.get(baseline, {}).keys() & by_variant.get(variant, {}).keys())
        if not common:
            continue
        sheet = ScoreSheet(found[0][3].metrics)
        for name in (baseline, variant):
            for seed in common:
                add_result(sheet, name, by_variant[name][seed], shown, seed if num_seeds > 1 else None)
        comparisons += [
            replace(one, interval=_over_seeds(one.interval) if num_seeds > 1 else one.interval)
            for one in sheet.comparisons()
        ]
    return comparisons


def _over_seeds(interval: Any) -> Any:
    """Names what was resampled: of a sheet, the folds are seeds and the units the evaluation's folds."""
    if interval is None:
        return None
    return replace(interval, over={"folds": "seeds", "folds and genes": "seeds and folds"}[interval.over])


def _models(study: Study, found: Found) -> list[ModelRecord]:
    models = []
    for variant in study.variants:
        mine = [(record, result) for name, _, record, result in found if name == variant]
        if mine:
            record, result = mine[0]
            models.append(
                replace(
                    result.models[0],
                    label=variant,
                    name=str(record.settings["model"]["name"]),
                    weights=f"{len(mine)} {'run' if len(mine) == 1 else 'runs'}",
                    weights_sha256=digest_of([one.weights_sha256 for one, _ in mine]),
                    num_patches=sum(one.models[0].num_patches for _, one in mine),
                    num_cached=0,
                    # what embedding took depends on what was interrupted
                    seconds=0.0,
                    data_wait_share=float("nan"),
                )
            )
    return models


def _baselines(study: Study, task: str, digest: str) -> Result | None:
    """Reads the baselines of an evaluation; None where there are none."""
    folder = study.output / "baselines" / task
    try:
        known = json.loads((folder / "study_task.json").read_text(encoding="utf-8"))["definition"]
    except (OSError, ValueError, KeyError):
        return None
    if known != digest:
        return None
    found = read_result(folder)
    models = tuple(
        replace(one, seconds=0.0, num_cached=0, data_wait_share=float("nan")) for one in found.models
    )
    return replace(found, models=models)


def _remarks(found: Found, num_seeds: int) -> list[str]:
    notes = list(dict.fromkeys(note for _, _, _, result in found for note in result.notes))
    data = {result.provenance.data_digest for _, _, _, result in found}
    if len(data) > 1:
        notes.append("The data of this evaluation changed between cells: their scores cannot be compared.")
    if num_seeds == 1:
        notes.append(
            "One seed: intervals and tests are over the evaluation's folds, and do not tell what another seed would change."
        )
    else:
        reach = ", so that 0.05 is out of reach" if num_seeds < 6 else ""
        notes.append(
            f"Each fold of these tables is a seed, whose score is the mean over the evaluation's folds; tests pair seeds. With "
            f"{num_seeds} seeds p cannot fall below {2.0 ** (1 - num_seeds):.3g}{reach}."
        )
    return notes


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
