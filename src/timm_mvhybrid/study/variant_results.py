"""Results of cells → one result: variants in place of models, seeds in place of folds, paired tests between variants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..report import Presentation, Result, ScoreSheet, read_result, register_presentation
from ..report.presentation import presentation_of
from ..runtime.provenance import ModelRecord
from .cell_record import DEFINITION, CellRecord
from .study_file import Study, digest_of


class StudyPresentation(Presentation):
    """How an evaluation of a study is shown: variants in place of models, seeds in place of folds."""

    name = "study"

    def caption(self, result: Result) -> str:
        """Names the evaluation, and what the deviation is over."""
        over = "seeds" if result.settings["seeds"] > 1 else "the evaluation's folds"
        return f"{result.settings['evaluation']} of {result.dataset}; mean ± standard deviation over {over}."


register_presentation(StudyPresentation())


def result_of_variants(
    study: Study, task: str, records: Mapping[str, CellRecord], digest: str
) -> Result | None:
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
        known = json.loads((folder / DEFINITION).read_text(encoding="utf-8"))["definition"]
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
