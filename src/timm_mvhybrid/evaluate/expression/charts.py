"""Expression prediction: result → slope chart and per-gene bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...report import Metric, Result
from ...report.bars import Bar, axis_limits, grouped_bars
from ...report.drawing import Drawing, chart_style
from ...report.series_looks import colour, marker
from ...report.table import signed
from ...runtime.extras import require
from .tables import ExpressionDrop, gene_means

_LABEL_PX = 15
"""Least distance of two labels."""
_PANEL_WIDTH, _PANEL_PITCH = 250, 470
_RANDOM_PX, _LOSO_PX = 40, 225


@chart_style()
def slope_chart(
    drops: Sequence[ExpressionDrop], labels: Sequence[str], metrics: Mapping[str, Metric]
) -> str | None:
    """Draws what each model loses from random folds to left-out studies, one panel for each metric.

    Returns:
        The SVG, or None without drops.
    """
    if not drops:
        return None
    models = {label: index for index, label in enumerate(labels)}
    shown = ", ".join(metric.label for metric in metrics.values())
    drawing = Drawing(f"Random folds against left-out studies for {shown}")
    height = max(200, _LABEL_PX * (len(models) + 1))
    for index, (name, metric) in enumerate(metrics.items()):
        left, top = (index % 2) * _PANEL_PITCH, (index // 2) * (height + 76)
        axes = drawing.panel(left, top, _PANEL_WIDTH, height)
        _slopes(drawing, axes, {drop.model: drop for drop in drops if drop.metric == name}, models)
        heading = axes.annotate(
            metric.label, (0, 1), (-36, 16), "axes fraction", "offset pixels", fontweight="bold"
        )
        drawing.text(heading, "heading")
        arrow = "higher is better" if metric.higher else "lower is better"
        drawing.text(axes.annotate(arrow, (1, 0), (8, 0), heading, "offset pixels", va="bottom"), "tick")
    drawing.legend(models, -36, -46)
    return drawing.svg()


def _slopes(
    drawing: Drawing, axes: Any, drops: Mapping[str, ExpressionDrop], models: Mapping[str, int]
) -> None:
    values = [
        value for drop in drops.values() for value in (drop.random, drop.loso) if math.isfinite(value)
    ] or [0.0, 1.0]
    room = 0.06 * (max(values) - min(values)) or 0.5 * abs(values[0]) or 0.5
    axes.set(xlim=(0, _PANEL_WIDTH), ylim=(min(values) - room, max(values) + room))
    drawing.numbers(axes.yaxis, 4)
    drawing.ticks(axes.xaxis, [_RANDOM_PX, _LOSO_PX], ["random", "LOSO"])
    shown = [model for model in models if model in drops and math.isfinite(drops[model].loso)]
    to_px = axes.transData
    heights = apart([to_px.transform((0, drops[model].loso))[1] for model in shown], _LABEL_PX)
    for model, height in zip(shown, heights, strict=True):
        drop, series = drops[model], models[model]
        percent = "drop undefined" if drop.percent is None else f"drop {drop.percent:.1f} %"
        note = signed(f"{model}: {drop.random:.3f} random, {drop.loso:.3f} LOSO, {percent}")
        ends = [(_RANDOM_PX, drop.random), (_LOSO_PX, drop.loso)]
        if math.isfinite(drop.random):
            drawing.mark(axes.plot(*zip(*ends, strict=True))[0], f"{colour(series)} series", note)
        else:
            del ends[0]
        points = axes.plot(*zip(*ends, strict=True), **marker(series), zorder=3)[0]
        drawing.mark(points, f"{colour(series)} marker", note)
        beside = to_px.inverted().transform((0, height))[1]
        x = [_LOSO_PX + 8, _PANEL_WIDTH]
        drawing.mark(axes.plot(x, [drop.loso, beside], linewidth=1)[0], f"{colour(series)} series leader")
        text = f"{drop.loso:.3f}" if drop.percent is None else f"{drop.loso:.3f} ({drop.percent:.0f} %)"
        drawing.text(axes.text(_PANEL_WIDTH + 4, beside, signed(text), va="center_baseline"))


def apart(positions: Sequence[float], distance: float) -> list[float]:
    """Moves labels so that they do not overlap, each as little as possible.

    With the labels in order, moved_i − i · distance must not fall, and the sum of squared moves is to be least: an
    isotonic regression of positions_i − i · distance.

    Returns:
        Where they fit, in the same order, their mean kept.
    """
    if not positions:
        return []
    wanted = np.asarray(positions, dtype=float)
    order = np.argsort(wanted, kind="stable")
    room = distance * np.arange(len(wanted))
    moved = np.empty_like(wanted)
    moved[order] = require("sklearn.isotonic").isotonic_regression(wanted[order] - room) + room
    return moved.tolist()


@chart_style()
def gene_bars(result: Result, protocol: str, shown_as: str) -> str | None:
    """Draws each gene's correlation, models side by side, sorted by the first model.

    Returns:
        The SVG, or None without genes under this protocol.
    """
    group = result.models_of(protocol)
    means = [gene_means(result, model, protocol) for model in group]
    genes = list(dict.fromkeys(gene for found in means for gene in found))
    if not genes:
        return None

    def rank(gene: str) -> float:
        value = means[0][gene][0] if gene in means[0] else math.nan
        return -value if math.isfinite(value) else math.inf

    series = {
        model: {
            gene: Bar(
                value=value,
                spread=spread,  # a gene of one fold has no deviation to show
                note=f"{gene}, {model}: {value:.3f} ± {spread:.3f} over {count} folds",
            )
            for gene, (value, spread, count) in found.items()
        }
        for model, found in zip(group, means, strict=True)
    }
    # a model keeps its colour where others were not evaluated under this protocol
    names = dict.fromkeys([*(model.label for model in result.models), *group])
    return grouped_bars(
        f"PCC of every gene, {shown_as} folds",
        sorted(genes, key=rank),
        series,
        colours={name: index for index, name in enumerate(names)},
        limits=axis_limits([bar for bars in series.values() for bar in bars.values()]),
        bar_px=6 if len(group) > 1 else 9,
        gap_px=5,
        classes="gene",
        rotation=90,
        ha="right",
        va="center",
    )
