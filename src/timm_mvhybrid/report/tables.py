"""Result of any task → its tables."""

from __future__ import annotations

from collections.abc import Sequence

from ..probes.resampling import MetricSummary
from .expression_tables import expression_tables
from .metrics import metric, protocol_label
from .results import (
    ClassificationResult,
    ExpressionResult,
    Result,
    RetrievalResult,
    SlidesResult,
    SurvivalResult,
)
from .table import Cell, Table, mark_best, number_cell, text_cell

Row = tuple[str, str, int, Sequence[MetricSummary]]
"""Model, setting, number of folds, metrics."""


def result_tables(result: Result) -> list[Table]:
    """Makes the tables of a result.

    Args:
        result: The result of any task.

    Returns:
        The task's tables, confidence intervals, paired comparisons, and the models.

    Raises:
        TypeError: If the task has no tables.
    """
    rows: list[Row] = []
    if isinstance(result, ExpressionResult):
        tables = expression_tables(result)
        rows = [
            (scores.model, protocol_label(scores.protocol), len(scores.folds), scores.summary)
            for scores in result.scores
        ]
    elif isinstance(result, ClassificationResult):
        rows = [
            (scores.model, protocol_label(scores.probe), len(scores.folds), scores.summary)
            for scores in result.scores
        ]
        tables = [summary_table(f"Classification of {result.dataset}", "Probe", rows)]
    elif isinstance(result, RetrievalResult):
        tables = _retrieval(result)
    elif isinstance(result, SlidesResult):
        rows = [
            (scores.model, f"{len(scores.folds)} over patients", len(scores.folds), scores.summary)
            for scores in result.scores
        ]
        caption = f"{result.positive_label} against {result.negative_label}, slides of {result.dataset}"
        tables = [summary_table(caption, "Folds", rows)]
    elif isinstance(result, SurvivalResult):
        rows = [
            (scores.model, f"{len(scores.folds)} over patients", len(scores.folds), scores.summary)
            for scores in result.scores
        ]
        tables = [summary_table(f"Survival, patients of {result.dataset}", "Folds", rows), _log_rank(result)]
    else:
        raise TypeError(f"no tables for {type(result).__name__}")
    found = _intervals(rows)
    tables += [found] if found.rows else []
    tables += [_comparisons(result)] if result.comparisons else []
    return [*tables, _models(result)]


def summary_table(caption: str, second: str, rows: Sequence[Row]) -> Table:
    """Makes a table of metrics, a row for each model and setting.

    Args:
        caption: What it shows.
        second: Heading of the column of settings.
        rows: What each row shows.

    Returns:
        The table, the best of each setting marked.
    """
    names = list(dict.fromkeys(summary.metric for *_, summaries in rows for summary in summaries))
    cells: dict[tuple[int, str], Cell] = {}
    for setting in dict.fromkeys(row[1] for row in rows):
        members = [index for index, row in enumerate(rows) if row[1] == setting]
        for name in names:
            shown = []
            for index in members:
                found = next((s for s in rows[index][3] if s.metric == name), None)
                shown.append(
                    number_cell(None)
                    if found is None
                    else number_cell(
                        found.mean, metric(name).digits, found.std if rows[index][2] > 1 else None
                    )
                )
            best = mark_best(shown, higher=metric(name).higher)
            cells |= {(index, name): cell for index, cell in zip(members, best, strict=True)}
    return Table(
        name="scores",
        caption=f"{caption}; mean ± standard deviation over folds.",
        columns=("Model", second, *(metric(name).label for name in names)),
        rows=tuple(
            (text_cell(model), text_cell(setting), *(cells[index, name] for name in names))
            for index, (model, setting, *_) in enumerate(rows)
        ),
        num_text_columns=2,
    )


def _retrieval(result: RetrievalResult) -> list[Table]:
    ks = list(dict.fromkeys(k for scores in result.scores for k in scores.mean_precision))
    columns = [mark_best([number_cell(s.accuracy) for s in result.scores], higher=True)]
    for k in ks:
        columns.append(mark_best([number_cell(s.mean_precision.get(k)) for s in result.scores], higher=True))
    overall = Table(
        name="scores",
        caption=f"Retrieval by prototypes, {result.dataset}: share of queries nearest to their own class's prototype, "
        "and precision among the k queries nearest to each prototype, mean over the classes.",
        columns=("Model", "Accuracy", *(f"P@{k}" for k in ks)),
        rows=tuple(
            (text_cell(scores.model), *(column[index] for column in columns))
            for index, scores in enumerate(result.scores)
        ),
    )
    rows = [
        (
            text_cell(scores.model),
            text_cell(one.name),
            number_cell(one.num_support, 0),
            number_cell(one.num_queries, 0),
            *(number_cell(one.precision.get(k)) for k in ks),
        )
        for scores in result.scores
        for one in scores.classes
    ]
    classes = Table(
        name="classes",
        caption="Every class: images that make the prototype, its queries, and precision.",
        columns=("Model", "Class", "Support", "Queries", *(f"P@{k}" for k in ks)),
        rows=tuple(rows),
        num_text_columns=2,
    )
    return [overall, classes]


def _log_rank(result: SurvivalResult) -> Table:
    return Table(
        name="log-rank",
        caption="Patients above against below the median risk of their fold's training patients: log-rank test.",
        columns=("Model", "High risk", "Low risk", "p"),
        rows=tuple(
            (
                text_cell(scores.model),
                number_cell(sum(patient.high_risk for patient in scores.patients), 0),
                number_cell(sum(not patient.high_risk for patient in scores.patients), 0),
                number_cell(scores.log_rank_p_value, 4),
            )
            for scores in result.scores
        ),
    )


def _intervals(rows: Sequence[Row]) -> Table:
    cells = []
    for model, setting, _, summaries in rows:
        for summary in summaries:
            if summary.interval is None:
                continue
            digits = metric(summary.metric).digits
            cells.append(
                (
                    text_cell(model),
                    text_cell(setting),
                    text_cell(metric(summary.metric).label),
                    text_cell(summary.interval.over),
                    number_cell(summary.mean, digits),
                    number_cell(summary.interval.low, digits),
                    number_cell(summary.interval.high, digits),
                    number_cell(100 * summary.interval.level, 0),
                )
            )
    return Table(
        name="intervals",
        caption="Bootstrap confidence intervals of the means, and what was resampled.",
        columns=("Model", "Setting", "Metric", "Resampled", "Mean", "Low", "High", "Level, %"),
        rows=tuple(cells),
        num_text_columns=4,
    )


def _comparisons(result: Result) -> Table:
    rows = []
    for one in result.comparisons:
        digits = metric(one.metric).digits
        rows.append(
            (
                text_cell(f"{one.model} − {one.baseline}"),
                text_cell(protocol_label(one.protocol)),
                text_cell(metric(one.metric).label),
                number_cell(one.difference, digits, sign=True),
                number_cell(one.interval.low if one.interval else None, digits, sign=True),
                number_cell(one.interval.high if one.interval else None, digits, sign=True),
                number_cell(one.p_value, 3),
                number_cell(one.smallest_p_value, 3),
                number_cell(one.num_folds, 0),
                number_cell(100 * one.share_better, 0),
            )
        )
    return Table(
        name="comparisons",
        caption="Models against the first on the same folds. p by flipping signs of the folds' differences, beside the "
        "smallest p that as many folds can reach; better is the share of pairs in which the model wins.",
        columns=(
            "Pair",
            "Setting",
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
        caption="Models: weights, embedded patches, those taken from the cache, and the share of time spent waiting for "
        "patches.",
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
