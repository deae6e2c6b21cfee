"""Groups of bars, models side by side: values → a chart that scrolls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .drawing import PAGE_WIDTH, Box, Drawing
from .series_looks import bar as bar_classes


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        value: Its height; without one where it is NaN.
        note: Shown when the pointer rests on it.
        spread: Half the length of its whisker; 0 draws none.
        interval: Ends of the whisker where its middle is not the bar's height.
    """

    value: float
    note: str
    spread: float = 0.0
    interval: tuple[float, float] | None = None

    @property
    def whisker(self) -> tuple[float, float]:
        """Ends of the whisker; both the bar's height where it has none."""
        return self.interval or (self.value - self.spread, self.value + self.spread)


def grouped_bars(
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Mapping[str, Bar]],
    *,
    colours: Mapping[str, int],
    limits: tuple[float, float],
    bar_px: float,
    gap_px: float,
    **labels: Any,
) -> str:
    """Draws a group of bars for each name, one bar for each series.

    Args:
        title: What the chart shows.
        groups: Names of the groups, from left to right.
        series: What is drawn side by side: name → group → bar; a group may be missing.
        colours: Name → index of its colour.
        limits: Ends of the vertical axis.
        bar_px: Width of a bar with the space after it.
        gap_px: Space between groups.
        **labels: ``classes`` and properties of the groups' names.
    """
    pitch = bar_px * len(series) + gap_px
    width = max(pitch * len(groups) + gap_px, 300)
    drawing = Drawing(title)
    axes = drawing.panel(0, 0, width, 210)
    axes.set(xlim=(0, width), ylim=limits)
    drawing.numbers(axes.yaxis)
    starts = [gap_px + place * pitch for place in range(len(groups))]
    drawing.ticks(axes.xaxis, [start + (pitch - gap_px) / 2 for start in starts], groups, **labels)
    for number, (name, bars) in enumerate(series.items()):
        shown = [
            (start + number * bar_px, bars[group])
            for start, group in zip(starts, groups, strict=True)
            if group in bars and math.isfinite(bars[group].value)
        ]
        wide = bar_px - 1.5
        boxes = [
            Box(left=left, right=left + wide, bottom=0, top=bar.value, note=bar.note) for left, bar in shown
        ]
        drawing.boxes(axes, boxes, bar_classes(colours[name]))
        whiskers = [(left + wide / 2, *bar.whisker) for left, bar in shown if bar.whisker[0] < bar.whisker[1]]
        if whiskers:
            drawing.mark(axes.vlines(*zip(*whiskers, strict=True)), "whisker")
    drawing.legend({name: colours[name] for name in series}, 0, -14, width=min(width, PAGE_WIDTH), kind="bar")
    return drawing.svg()


def axis_limits(bars: Iterable[Bar]) -> tuple[float, float]:
    """Finds an axis that holds 0, all bars and whiskers, and a little room where there are any."""
    ends = [end for bar in bars if math.isfinite(bar.value) for end in (bar.value, *bar.whisker)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.06 * (high - low) or 0.5
    return low - room if low < 0 else 0.0, high + room if high > 0 or low == 0 else 0.0
