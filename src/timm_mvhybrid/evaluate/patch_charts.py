"""Classification and retrieval: result → confusion matrices and bars of precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..report.bars import Bar, BarSeries, grouped_bars
from ..report.drawing import Box, Drawing, chart_style
from ..report.series_looks import bar


@chart_style()
def confusion_matrix(model: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Draws a confusion matrix."""
    num = len(classes)
    cell = 58 if num <= 6 else 40
    drawing = Drawing(f"Confusion matrix of {model}")
    axes = drawing.panel(0, 0, num * cell, num * cell)
    axes.set(xlim=(0, num), ylim=(num, 0))
    centres = [place + 0.5 for place in range(num)]
    axes.xaxis.tick_top()
    drawing.ticks(axes.xaxis, centres, classes, "name", rotation=40, ha="left")
    drawing.ticks(axes.yaxis, centres, classes, "name")
    corner = axes.annotate(
        "predicted ↗ true ↓", (0, 1), (-6, 6), "axes fraction", "offset pixels", ha="right"
    )
    drawing.text(corner, "tick")
    edge, below = 1 / cell, 7 / cell
    boxes = []
    for i, true in enumerate(classes):
        total = sum(counts[i])
        for j, predicted in enumerate(classes):
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
def precision_bars(metric: str, precision: Mapping[str, Mapping[str, float]]) -> str:
    """Draws the precision of every class, models side by side.

    Args:
        metric: Such as ``precision@1``.
        precision: Model → class → precision.
    """
    series = [
        BarSeries(
            name=model,
            colour=colour,
            bars={
                name: Bar(value=value, note=f"{name}, {model}: {metric} {value:.3f}")
                for name, value in found.items()
            },
        )
        for colour, (model, found) in enumerate(precision.items())
    ]
    return grouped_bars(
        f"{metric.replace('@', ' at ').capitalize()} of every class",
        list(dict.fromkeys(name for one in series for name in one.bars)),
        series,
        limits=(0, 1),
        bar_px=14,
        gap_px=26,
        classes="name",
        rotation=35,
        ha="right",
    )
