"""Groups of bars, models side by side: values → a chart that scrolls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .drawing import PAGE_WIDTH, Box, Drawing
from .series_looks import bar as bar_classes


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Args:
        value: Its height; without one where it is NaN.
        note: Shown when the pointer rests on it.
        spread: Half the length of its whisker; 0 draws none.
    """

    value: float
    note: str
    spread: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BarSeries:
    """The bars of one model.

    Args:
        name: Its name in the legend.
        colour: Index of its colour.
        bars: Group → bar; a group may be missing.
    """

    name: str
    colour: int
    bars: Mapping[str, Bar]


def grouped_bars(
    title: str,
    groups: Sequence[str],
    series: Sequence[BarSeries],
    *,
    limits: tuple[float, float],
    bar_px: float,
    gap_px: float,
    **labels: Any,
) -> str:
    """Draws a group of bars for each name, one bar for each series.

    Args:
        title: What the chart shows.
        groups: Names of the groups, from left to right.
        series: What is drawn side by side.
        limits: Ends of the vertical axis.
        bar_px: Width of a bar with the space after it.
        gap_px: Space between groups.
        **labels: `classes` and properties of the groups' names.
    """
    pitch = bar_px * len(series) + gap_px
    width = max(pitch * len(groups) + gap_px, 300)
    drawing = Drawing(title)
    axes = drawing.panel(0, 0, width, 210)
    axes.set(xlim=(0, width), ylim=limits)
    drawing.numbers(axes.yaxis)
    starts = [gap_px + place * pitch for place in range(len(groups))]
    drawing.ticks(axes.xaxis, [start + (pitch - gap_px) / 2 for start in starts], groups, **labels)
    for number, one in enumerate(series):
        shown = [
            (start + number * bar_px, one.bars[group])
            for start, group in zip(starts, groups, strict=True)
            if group in one.bars and math.isfinite(one.bars[group].value)
        ]
        wide = bar_px - 1.5
        boxes = [
            Box(left=left, right=left + wide, bottom=0, top=bar.value, note=bar.note) for left, bar in shown
        ]
        drawing.boxes(axes, boxes, bar_classes(one.colour))
        whiskers = [
            (left + wide / 2, bar.value - bar.spread, bar.value + bar.spread)
            for left, bar in shown
            if bar.spread > 0
        ]
        if whiskers:
            drawing.mark(axes.vlines(*zip(*whiskers, strict=True)), "whisker")
    colours = {one.name: one.colour for one in series}
    drawing.legend(colours, 0, -14, width=min(width, PAGE_WIDTH), kind="bar")
    return drawing.svg()
