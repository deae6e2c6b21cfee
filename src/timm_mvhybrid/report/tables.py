"""Result of any task → its tables."""

from __future__ import annotations

from typing import Any

from .presentation import Presentation, metric_of, presentation_of
from .result import Result
from .table import Cell, Table, number_cell, text_cell


def result_tables(result: Result) -> list[Table]:
    """Makes the tables of a result.

    Returns:
        Scores, the task's own tables, folds, confidence intervals, paired comparisons, and the models.
    """
    looks = presentation_of(result)
    tables = [looks.headline(result), *looks.tables(result)]
    more = (_folds(result, looks), _intervals(result, looks), _comparisons(result, looks))
    return [*tables, *(table for table in more if table.rows), _models(result)]


def _folds(result: Result, looks: Presentation) -> Table:
    # one value each; lists, such as the samples of a fold, are in the file alone
    facts = list(
        dict.fromkeys(
            name for fold in result.folds for name, value in fold.facts.items() if not isinstance(value, list)
        )
    )
    rows = []
    several = {(fold.model, fold.protocol) for fold in result.folds}
    for fold in result.folds if len(result.folds) > len(several) else ():
        values = [
            (
                result.fold_values(fold.model, fold.protocol, name).get(fold.name),
                metric_of(result, name).digits,
            )
            for name in result.metrics
        ]
        rows.append(
            (
                text_cell(fold.model),
                text_cell(looks.protocol(fold.protocol)),
                text_cell(fold.name),
                number_cell(fold.num_train, 0),
                number_cell(fold.num_test, 0),
                *(number_cell(value, digits) for value, digits in values),
                *(_fact_cell(fold.facts.get(name)) for name in facts),
            )
        )
    return Table(
        name="folds",
        caption="Every fold: what was fitted on and what was scored, its scores, and what else is known of it.",
        columns=(
            "Model",
            looks.setting,
            "Fold",
            "Train",
            "Test",
            *(metric_of(result, name).label for name in result.metrics),
            *(name.removeprefix("num_").replace("_", " ").capitalize() for name in facts),
        ),
        rows=tuple(rows),
        num_text_columns=3,
    )


def _fact_cell(value: Any) -> Cell:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return text_cell("–" if value is None else str(value))
    return number_cell(value, 0) if isinstance(value, int) else Cell(text=f"{value:.3g}", value=value)


def _intervals(result: Result, looks: Presentation) -> Table:
    cells = []
    for one in result.summaries:
        if one.interval is None:
            continue
        metric = metric_of(result, one.metric)
        cells.append(
            (
                text_cell(one.model),
                text_cell(looks.protocol(one.protocol)),
                text_cell(metric.label),
                text_cell(one.interval.over),
                number_cell(one.mean, metric.digits),
                number_cell(one.interval.low, metric.digits),
                number_cell(one.interval.high, metric.digits),
                number_cell(100 * one.interval.level, 0),
            )
        )
    return Table(
        name="intervals",
        caption="Bootstrap confidence intervals of the means, and what was resampled.",
        columns=("Model", looks.setting, "Metric", "Resampled", "Mean", "Low", "High", "Level, %"),
        rows=tuple(cells),
        num_text_columns=4,
    )


def _comparisons(result: Result, looks: Presentation) -> Table:
    rows = []
    for one in result.comparisons:
        metric = metric_of(result, one.metric)
        low, high = (one.interval.low, one.interval.high) if one.interval else (None, None)
        rows.append(
            (
                text_cell(f"{one.model} − {one.baseline}"),
                text_cell(looks.protocol(one.protocol)),
                text_cell(metric.label),
                number_cell(one.difference, metric.digits, sign=True),
                number_cell(low, metric.digits, sign=True),
                number_cell(high, metric.digits, sign=True),
                number_cell(one.p_value, 3),
                number_cell(one.smallest_p_value, 3),
                number_cell(one.num_folds, 0),
                number_cell(100 * one.share_better, 0),
            )
        )
    return Table(
        name="comparisons",
        caption="Models against the first on the same folds. p by flipping signs of the folds' differences, beside the "
        "smallest p that as many folds can reach; better is the fraction of pairs in which the model wins.",
        columns=(
            "Pair",
            looks.setting,
            "Metric",
            "Difference",
            "Low",
            "High",
            "p",
            "Least p",
            "Folds",
            "Better, %",
        ),
        rows=tuple(rows),
        num_text_columns=3,
    )


def _models(result: Result) -> Table:
    rows = []
    for model in result.models:
        speed = (model.num_patches - model.num_cached) / model.seconds if model.seconds > 0 else None
        rows.append(
            (
                text_cell(model.label),
                text_cell(model.name),
                text_cell(model.weights),
                text_cell(model.weights_sha256[:12]),
                number_cell(model.embedding_dim, 0),
                number_cell(model.num_patches, 0),
                number_cell(model.num_cached, 0),
                number_cell(speed, 1),
                number_cell(100 * model.data_wait_share, 1),
            )
        )
    return Table(
        name="models",
        caption="Models: weights, embedded patches, those taken from the cache, and the fraction of time spent waiting "
        "for patches.",
        columns=(
            "Label",
            "Name",
            "Weights",
            "SHA-256",
            "Dim",
            "Patches",
            "Cached",
            "Patches/s",
            "Waiting, %",
        ),
        rows=tuple(rows),
        num_text_columns=4,
    )
