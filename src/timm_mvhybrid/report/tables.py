"""Result of any task → its tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime.provenance import ModelRecord
from .presentation import Presentation, metric_of, presentation_of
from .result import Result
from .table import Cell, Table, number_cell, text_cell

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
