"""Classification and retrieval: result → confusion matrices and bars of precision."""

from __future__ import annotations

import math
from dataclasses import replace

from .bars import Bar, BarSeries, grouped_bars
from .drawing import Box, Drawing, chart_style
from .results import ClassificationResult, ClassificationScores, RetrievalResult
from .series_looks import bar


@chart_style()
def confusion_matrix(result: ClassificationResult, scores: ClassificationScores) -> str:
    """Draws a confusion matrix, folds added up.

    Args:
        result: The result.
        scores: One model under one probe.

    Returns:
        The SVG.
    """
    num = len(result.classes)
    counts = [[sum(fold.confusion[i][j] for fold in scores.folds) for j in range(num)] for i in range(num)]
    cell = 58 if num <= 6 else 40
    drawing = Drawing(f"Confusion matrix of {scores.model}")
    axes = drawing.panel(0, 0, num * cell, num * cell)
    axes.set(xlim=(0, num), ylim=(num, 0))
    centres = [place + 0.5 for place in range(num)]
    axes.xaxis.tick_top()
    drawing.ticks(axes.xaxis, centres, result.classes, "name", rotation=40, ha="left")
    drawing.ticks(axes.yaxis, centres, result.classes, "name")
    corner = axes.annotate(
        "predicted ↗ true ↓", (0, 1), (-6, 6), "axes fraction", "offset pixels", ha="right"
    )
    drawing.text(corner, "tick")
    edge, below = 1 / cell, 7 / cell
    boxes = []
    for i, true in enumerate(result.classes):
        total = sum(counts[i])
        for j, predicted in enumerate(result.classes):
            fraction = counts[i][j] / total if total else 0.0
            boxes.append(
                Box(
                    left=j + edge,
                    right=j + 1 - edge,
                    bottom=i + 1 - edge,
                    top=i + edge,
                    note=f"{true} taken for {predicted}: {counts[i][j]} of {total}",
                    opacity=fraction,
                )
            )
            ink = "on-fill" if fraction > 0.55 else "ink"
            for y, text, size in (
                (i + 0.5 - below, f"{100 * fraction:.0f} %", "name"),
                (i + 0.5 + below, str(counts[i][j]), "small"),
            ):
                written = axes.text(j + 0.5, y, text, ha="center", va="center_baseline")
                # lies within its cell, so that the picture's size need not be found from it
                written.set_in_layout(False)
                drawing.text(written, f"{ink} {size}")
    drawing.boxes(axes, [replace(box, opacity=1) for box in boxes], "cell")
    drawing.boxes(axes, boxes, bar(0))
    return drawing.svg()


@chart_style()
def retrieval_bars(result: RetrievalResult) -> str | None:
    """Draws precision at the smallest k for every class, models side by side.

    Args:
        result: The result.

    Returns:
        The SVG, or None where nothing was ranked.
    """
    ks = [k for scores in result.scores for k in scores.mean_precision]
    if not ks:
        return None
    k = min(ks, key=float)
    series = []
    for colour, scores in enumerate(result.scores):
        found = {one.name: one.precision.get(k, math.nan) for one in scores.classes}
        bars = {
            name: Bar(value=value, note=f"{name}, {scores.model}: precision@{k} {value:.3f}")
            for name, value in found.items()
        }
        series.append(BarSeries(name=scores.model, colour=colour, bars=bars))
    return grouped_bars(
        f"Precision at {k} of every class",
        list(dict.fromkeys(name for one in series for name in one.bars)),
        series,
        limits=(0, 1),
        bar_px=14,
        gap_px=26,
        classes="name",
        rotation=35,
        ha="right",
    )
