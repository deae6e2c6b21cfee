"""Groups of genes, such as the frequency bands of a phantom: each gene's scores → a metric of each group, its table, its chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...probes.expression_metrics import ExpressionMetrics, mean_correlation
from ...report import Metric, Presentation, Result
from ...report.bars import Bar, axis_limits, grouped_bars
from ...report.drawing import chart_style
from ...report.table import Cell, Table, number_cell, signed, text_cell

_PREFIX = "pcc:"


def group_metrics(groups: Mapping[str, str]) -> dict[str, Metric]:
    """Makes the metric of each group of genes, gene → group: the mean correlation of its genes."""
    return {_PREFIX + group: Metric(label=f"PCC, {group}") for group in dict.fromkeys(groups.values())}


def score_groups(
    found: ExpressionMetrics, genes: Sequence[str], groups: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Averages the correlations of a fold's genes over each group.

    Genes without a correlation enter by the same policy as in the mean over all genes.

    Returns:
        Metric → mean, of groups of which the fold has a gene; and metric → gene → correlation.
    """
    units: dict[str, dict[str, float]] = {_PREFIX + group: {} for group in dict.fromkeys(groups.values())}
    for gene, value in zip(genes, found.pcc_per_gene.tolist(), strict=True):
        if gene in groups:
            units[_PREFIX + groups[gene]][gene] = value
    units = {metric: values for metric, values in units.items() if values}
    means = {
        metric: mean_correlation(np.array(list(values.values())), found.nan_policy)
        for metric, values in units.items()
    }
    return means, units


def groups_of(result: Result) -> dict[str, str]:
    """Finds the groups of a result: metric → group."""
    return {name: name.removeprefix(_PREFIX) for name in result.metrics if name.startswith(_PREFIX)}


def groups_table(result: Result, presentation: Presentation) -> Table | None:
    """Makes the table of mean correlations by group, with intervals; None without groups."""
    groups = groups_of(result)
    if not groups:
        return None
    rows = [
        (
            text_cell(model),
            text_cell(presentation.protocol(protocol)),
            *(_cell(result, model, protocol, metric) for metric in groups),
        )
        for protocol in result.protocols
        for model in result.models_of(protocol)
    ]
    levels = {one.interval.level for one in result.summaries if one.interval is not None}
    interval = f", with {' or '.join(f'{100 * level:.0f} %' for level in sorted(levels))} bootstrap intervals"
    sizes = ", ".join(f"{group} {_num_genes(result, metric)}" for metric, group in groups.items())
    return Table(
        name="gene-groups",
        caption=f"PCC by group of genes, mean over folds{interval if levels else ''}. Genes: {sizes}.",
        columns=("Model", presentation.setting, *groups.values()),
        rows=tuple(rows),
        num_text_columns=2,
    )


def _cell(result: Result, model: str, protocol: str, metric: str) -> Cell:
    found = result.summary(model, protocol, metric)
    if found is None:
        return number_cell(None)
    cell = number_cell(found.mean)
    if found.interval is None or cell.value is None:
        return cell
    ends = signed(f"{found.interval.low:.3f} to {found.interval.high:.3f}")
    return Cell(text=f"{cell.text} ({ends})", value=cell.value)


def _num_genes(result: Result, metric: str) -> int:
    return len({score.unit for score in result.scores if score.metric == metric and score.unit})


@chart_style()
def group_bars(result: Result, protocol: str, shown_as: str) -> str | None:
    """Draws the mean correlation of each group, models side by side, with intervals.

    Returns:
        The SVG, or None without groups under this protocol.
    """
    groups = groups_of(result)
    models = result.models_of(protocol)
    series: dict[str, dict[str, Bar]] = {}
    for model in models:
        for metric, group in groups.items():
            found = result.summary(model, protocol, metric)
            if found is None or math.isnan(found.mean):
                continue
            note = f"{group}, {model}: {_cell(result, model, protocol, metric).text}"
            ends = None if found.interval is None else (found.interval.low, found.interval.high)
            series.setdefault(model, {})[group] = Bar(value=found.mean, note=note, interval=ends)
    if not series:
        return None
    names = dict.fromkeys([*(model.label for model in result.models), *models])
    wide = max(len(group) for group in groups.values()) * 7
    bar_px = 14
    return grouped_bars(
        f"PCC by group of genes, {shown_as} folds",
        list(groups.values()),
        series,
        colours={name: index for index, name in enumerate(names)},
        limits=axis_limits([bar for bars in series.values() for bar in bars.values()]),
        bar_px=bar_px,
        # names of groups lie side by side
        gap_px=max(18, wide - bar_px * len(series) + 12),
    )
