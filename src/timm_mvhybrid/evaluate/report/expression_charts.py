"""Expression prediction: result → slope chart and per-gene bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..results import ExpressionResult
from .expression_tables import gene_means
from .metrics import EXPRESSION_METRICS, metric, protocol_label
from .svg import (
    NUM_COLOURS,
    apart,
    drawing,
    element,
    fitted,
    label,
    legend,
    marker,
    tooltip,
    vertical_axis,
)

_PANEL_WIDTH, _PANEL_HEIGHT = 330, 270


def slope_chart(result: ExpressionResult) -> str | None:
    """Draws what each model loses from random folds to left-out studies, one panel for each metric.

    Args:
        result: The result.

    Returns:
        The SVG, or None without both kinds of folds.
    """
    if not result.drops:
        return None
    models = [model.label for model in result.models]
    parts: list[str] = []
    for index, name in enumerate(EXPRESSION_METRICS):
        left, top = (index % 2) * (_PANEL_WIDTH + 20), (index // 2) * (_PANEL_HEIGHT + 12) + 28
        parts += _slope_panel(result, name, models, left, top)
    parts += legend(models, 8, 16)
    rows = math.ceil(len(EXPRESSION_METRICS) / 2)
    return drawing(
        2 * _PANEL_WIDTH + 20,
        rows * (_PANEL_HEIGHT + 12) + 28,
        parts,
        "Random folds against left-out studies for "
        + ", ".join(metric(name).label for name in EXPRESSION_METRICS),
    )


def _slope_panel(
    result: ExpressionResult, name: str, models: Sequence[str], left: float, top: float
) -> list[str]:
    drops = {drop.model: drop for drop in result.drops if drop.metric == name}
    values = [value for drop in drops.values() for value in (drop.random, drop.loso)]
    scale = fitted(values, top + _PANEL_HEIGHT - 34, top + 34)
    random_x, loso_x, end = left + 70, left + _PANEL_WIDTH - 108, left + _PANEL_WIDTH
    arrow = "higher is better" if metric(name).higher else "lower is better"
    parts = [
        element(
            "text",
            f"{metric(name).label} <tspan class='tick'>{arrow}</tspan>",
            x=left + 8,
            y=top + 16,
            class_="heading",
        )
    ]
    parts += vertical_axis(scale, left + 48, loso_x + 12, 4)
    for x, text in ((random_x, "random"), (loso_x, "LOSO")):
        parts.append(label(x, top + _PANEL_HEIGHT - 14, text, text_anchor="middle", class_="tick"))
    shown = [model for model in models if model in drops and math.isfinite(drops[model].loso)]
    heights = apart([scale(drops[model].loso) for model in shown], 15)
    for model, height in zip(shown, heights, strict=True):
        drop, series = drops[model], models.index(model)
        first, second = scale(drop.random), scale(drop.loso)
        percent = "drop undefined" if drop.percent is None else f"drop {drop.percent:.1f} %".replace("-", "−")
        note = tooltip(f"{model}: {drop.random:.3f} random, {drop.loso:.3f} LOSO, {percent}")
        if math.isfinite(drop.random):
            line = element(
                "line",
                note,
                x1=random_x,
                y1=first,
                x2=loso_x,
                y2=second,
                class_=f"stroke-{series % NUM_COLOURS} series",
            )
            parts += [line, marker(random_x, first, series, note)]
        parts.append(marker(loso_x, second, series, note))
        text = f"{drop.loso:.3f}" if drop.percent is None else f"{drop.loso:.3f}  ({drop.percent:.0f} %)"
        if end > loso_x:
            parts.append(label(loso_x + 14, height + 4, text.replace("-", "−"), class_="name"))
    return parts


def gene_bars(result: ExpressionResult, protocol: str) -> str | None:
    """Draws each gene's correlation, models side by side, sorted by the first model.

    Args:
        result: The result.
        protocol: The folds.

    Returns:
        The SVG, or None without genes under this protocol.
    """
    group = [scores for scores in result.scores if scores.protocol == protocol]
    means = [gene_means(scores) for scores in group]
    genes = list(dict.fromkeys(gene for found in means for gene in found))
    if not genes:
        return None
    missing = (math.nan, math.nan, 0)

    def rank(gene: str) -> float:
        value = means[0].get(gene, missing)[0]
        return -value if math.isfinite(value) else math.inf

    genes.sort(key=rank)
    models = [model.label for model in result.models]
    bar = 6 if len(group) > 1 else 9
    pitch = bar * len(group) + 5
    longest = max(len(gene) for gene in genes)
    left, top, plot_height, bottom = 48, 30, 210, 20 + 6 * longest
    ends = [
        value + side * spread
        for found in means
        for value, spread, _ in found.values()
        if math.isfinite(value)
        for side in (-1, 1)
    ]
    scale = fitted(ends, top + plot_height, top, zero=True)
    width = max(left + pitch * len(genes) + 16, 360)
    parts = [*legend([scores.model for scores in group], left, 16), *vertical_axis(scale, left, width - 8)]
    for place, gene in enumerate(genes):
        x = left + 4 + place * pitch
        for number, (scores, found) in enumerate(zip(group, means, strict=True)):
            value, spread, count = found.get(gene, missing)
            if not math.isfinite(value):
                continue
            series = models.index(scores.model) if scores.model in models else number
            note = tooltip(f"{gene}, {scores.model}: {value:.3f} ± {spread:.3f} over {count} folds")
            base, tip = scale(0), scale(value)
            parts.append(
                element(
                    "rect",
                    note,
                    x=x + number * bar,
                    y=min(base, tip),
                    width=bar - 1,
                    height=max(abs(tip - base), 0.5),
                    class_=f"fill-{series % NUM_COLOURS} bar",
                )
            )
            if spread == 0:  # a gene of one fold has no deviation to show
                continue
            middle = x + number * bar + (bar - 1) / 2
            parts.append(
                element(
                    "line",
                    x1=middle,
                    x2=middle,
                    y1=scale(value - spread),
                    y2=scale(value + spread),
                    class_="whisker",
                )
            )
        centre = x + bar * len(group) / 2 + 3
        parts.append(
            label(
                centre,
                top + plot_height + 8,
                gene,
                text_anchor="end",
                transform=f"rotate(-90 {centre:.2f} {top + plot_height + 8:.2f})",
                class_="gene",
            )
        )
    title = f"PCC of every gene, {protocol_label(protocol)} folds"
    return drawing(width, top + plot_height + bottom, parts, title, fixed=True)
