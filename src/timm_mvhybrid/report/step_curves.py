"""Numbers over the steps of a run → a chart of curves."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .drawing import Drawing, chart_style
from .series_looks import curve

_WIDTH, _HEIGHT = 640, 240


@chart_style()
def step_curves(
    title: str, curves: Mapping[str, Mapping[int, float]], unit: str, *, digits: int = 3
) -> str | None:
    """Draws curves over steps.

    Args:
        title: What is shown, for those who cannot see it.
        curves: Name → step → number; what is not finite is left out.
        unit: At the vertical axis.
        digits: Decimals of notes.

    Returns:
        The SVG; None where no curve has two points.
    """
    known = {
        name: {step: value for step, value in sorted(points.items()) if math.isfinite(value)}
        for name, points in curves.items()
    }
    known = {name: points for name, points in known.items() if points}
    if not any(len(points) > 1 for points in known.values()):
        return None
    steps = [step for points in known.values() for step in points]
    values = [value for points in known.values() for value in points.values()]
    margin = 0.05 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 0.05
    drawing = Drawing(title)
    axes = drawing.panel(0, 0, _WIDTH, _HEIGHT)
    axes.set(xlim=(min(steps), max(steps)), ylim=(min(values) - margin, max(values) + margin))
    for axis, name in ((axes.xaxis, "step"), (axes.yaxis, unit)):
        drawing.numbers(axis)
        axis.set_label_text(name)
        drawing.text(axis.label, "tick")
    for series, (name, points) in enumerate(known.items()):
        last = max(points)
        note = f"{name}: {points[min(points)]:.{digits}f} at step {min(points)}, {points[last]:.{digits}f} at step {last}"
        drawn = axes.plot(list(points), list(points.values()), linewidth=2)[0]
        drawing.mark(drawn, curve(series), note)
    drawing.legend({name: series for series, name in enumerate(known)}, 0, -14, kind="curve")
    return drawing.svg()
