"""Curves over any quantity → a chart, on a logarithmic scale where the numbers span one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .drawing import Drawing, chart_style
from .series_looks import curve
from .table import signed

_WIDTH, _HEIGHT = 640, 260


@chart_style()
def line_chart(
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
) -> str | None:
    """Draws curves.

    Args:
        title: What is shown, for those who cannot see it.
        curves: Name → points (x, y), in the order of x; what is not finite is left out.
        x_label: At the horizontal axis, with its unit.
        y_label: At the vertical axis, with its unit.
        logarithmic: Whether the vertical axis shows powers of ten, where the numbers span a factor of ten or more; zeros and
            negative numbers are then left out.

    Returns:
        The SVG; None where no curve has two points.
    """
    heights = [y for points in curves.values() for _, y in points if math.isfinite(y) and y > 0]
    logarithmic = logarithmic and bool(heights) and max(heights) >= 10 * min(heights)
    known = {
        name: [
            (x, math.log10(y) if logarithmic else y)
            for x, y in points
            if math.isfinite(x) and math.isfinite(y) and (y > 0 or not logarithmic)
        ]
        for name, points in curves.items()
    }
    known = {name: points for name, points in known.items() if len(points) > 1}
    if not known:
        return None
    xs = [x for points in known.values() for x, _ in points]
    ys = [y for points in known.values() for _, y in points]
    margin = 0.05 * (max(ys) - min(ys)) or 0.05 * abs(ys[0]) or 0.05
    drawing = Drawing(title)
    axes = drawing.panel(0, 0, _WIDTH, _HEIGHT)
    axes.set(xlim=(min(xs), max(xs)), ylim=(min(ys) - margin, max(ys) + margin))
    drawing.numbers(axes.xaxis)
    if logarithmic:
        _powers(drawing, axes, min(ys) - margin, max(ys) + margin)
    else:
        drawing.numbers(axes.yaxis)
    for axis, name in ((axes.xaxis, x_label), (axes.yaxis, y_label)):
        axis.set_label_text(name)
        drawing.text(axis.label, "tick")
    for series, (name, points) in enumerate(known.items()):
        (first_x, first_y), (last_x, last_y) = points[0], points[-1]
        first, last = (10**y if logarithmic else y for y in (first_y, last_y))
        note = f"{name}: {first:.3g} at {first_x:.3g}, {last:.3g} at {last_x:.3g}"
        drawn = axes.plot([x for x, _ in points], [y for _, y in points], linewidth=2)[0]
        drawing.mark(drawn, curve(series), note)
    drawing.legend({name: series for series, name in enumerate(known)}, 0, -14, kind="curve")
    return drawing.svg()


def _powers(drawing: Drawing, axes: object, low: float, high: float) -> None:
    """Labels 1, 2 and 5 times powers of ten, or powers of ten alone where there are many."""
    few = high - low < 2.5
    digits = (1, 2, 5) if few else (1,)
    step = max(1, round((high - low) / 6))
    values = [
        power + math.log10(digit)
        for power in range(math.floor(low), math.ceil(high) + 1)
        if few or power % step == 0
        for digit in digits
    ]
    shown = [value for value in values if low <= value <= high]
    labels = [signed(f"{10**value:.3g}") for value in shown]
    drawing.ticks(axes.yaxis, shown, labels, grid=True)  # type: ignore[attr-defined]
