"""Drawing: shapes and scales → inline SVG whose colours the page's style sheet decides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

NUM_COLOURS = 6


def element(tag: str, content: str = "", **attributes: object) -> str:
    """Writes one SVG element.

    Args:
        tag: Its name.
        content: What it contains, already escaped.
        **attributes: `text_anchor` becomes text-anchor, `class_` class. Numbers keep two decimals.

    Returns:
        The element.
    """
    written = []
    for name, value in attributes.items():
        if isinstance(value, float):
            value = f"{value:.2f}".rstrip("0").rstrip(".")
        written.append(f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"')
    return f"<{tag}{''.join(written)}>{content}</{tag}>" if content else f"<{tag}{''.join(written)}/>"


def label(x: float, y: float, content: str, **attributes: object) -> str:
    """Writes text.

    Args:
        x: Position.
        y: Baseline.
        content: The text.
        **attributes: As in `element`.

    Returns:
        The element.
    """
    return element("text", escape(content), x=x, y=y, **attributes)


def tooltip(content: str) -> str:
    """Writes what is shown when the pointer rests on a shape.

    Args:
        content: The text.

    Returns:
        The element, to be put within the shape's.
    """
    return f"<title>{escape(content)}</title>"


def drawing(width: float, height: float, parts: Sequence[str], title: str, *, fixed: bool = False) -> str:
    """Writes a whole picture.

    Args:
        width: Width in px.
        height: Height in px.
        parts: Its elements.
        title: What it shows, for those who cannot see it.
        fixed: Whether it keeps its size, for pictures that scroll, instead of shrinking to the page.

    Returns:
        The `svg` element.
    """
    size = f' width="{width:.0f}" height="{height:.0f}"' if fixed else f' style="max-width:{width:.0f}px"'
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}"{size} role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values → positions.

    Args:
        low: Lower end of the values.
        high: Upper end, above the lower one.
        start: Position of the lower end.
        stop: Position of the upper end.
    """

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Finds the position of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, num: int = 5) -> list[float]:
        """Finds round values to label.

        Args:
            num: About how many.

        Returns:
            Values within the scale.
        """
        raw = (self.high - self.low) / num
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def fitted(values: Sequence[float], start: float, stop: float, *, zero: bool = False) -> Scale:
    """Makes a scale that holds all values, with a little room.

    Args:
        values: Values; NaN is ignored.
        start: Position of the lower end.
        stop: Position of the upper end.
        zero: Whether to include 0.

    Returns:
        The scale, of unit length where there is no value.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return Scale(
        low=low if zero and low == 0 else low - room,
        high=high if zero and high == 0 else high + room,
        start=start,
        stop=stop,
    )


def tick_text(value: float) -> str:
    """Writes a value beside an axis.

    Args:
        value: The value.

    Returns:
        Its text with a proper minus sign.
    """
    return f"{value:.6g}".replace("-", "−")


def vertical_axis(scale: Scale, left: float, right: float, num: int = 5) -> list[str]:
    """Draws horizontal grid lines with their values.

    Args:
        scale: The scale.
        left: Left end of the lines.
        right: Right end.
        num: About how many.

    Returns:
        The elements.
    """
    parts = []
    for value in scale.ticks(num):
        y = scale(value)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="zero" if value == 0 else "grid"))
        parts.append(label(left - 6, y + 4, tick_text(value), text_anchor="end", class_="tick"))
    return parts


def horizontal_axis(scale: Scale, top: float, bottom: float, num: int = 6) -> list[str]:
    """Draws vertical grid lines with their values.

    Args:
        scale: The scale.
        top: Upper end of the lines.
        bottom: Lower end, above the values.
        num: About how many.

    Returns:
        The elements.
    """
    parts = []
    for value in scale.ticks(num):
        x = scale(value)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(label(x, bottom + 16, tick_text(value), text_anchor="middle", class_="tick"))
    return parts


def marker(x: float, y: float, series: int, content: str = "", size: float = 4.5) -> str:
    """Draws a point whose shape, as well as its colour, tells the series.

    Args:
        x: Position.
        y: Position.
        series: Index of the series.
        content: A tooltip, or nothing.
        size: Half its width.

    Returns:
        The element.
    """
    kind = f"fill-{series % NUM_COLOURS} marker"
    shape = series % 3
    if shape == 0:
        return element("circle", content, cx=x, cy=y, r=size, class_=kind)
    if shape == 1:
        return element("rect", content, x=x - size, y=y - size, width=2 * size, height=2 * size, class_=kind)
    corners = f"{x:.2f},{y - 1.2 * size:.2f} {x + 1.2 * size:.2f},{y + size:.2f} {x - 1.2 * size:.2f},{y + size:.2f}"
    return element("polygon", content, points=corners, class_=kind)


def legend(names: Sequence[str], x: float, y: float) -> list[str]:
    """Draws a row of series' names.

    Args:
        names: Series in their order.
        x: Left end.
        y: Baseline.

    Returns:
        The elements.
    """
    parts = []
    for series, name in enumerate(names):
        parts.append(marker(x + 5, y - 4, series))
        parts.append(label(x + 16, y, name, class_="name"))
        # text cannot be measured here; 7 px a letter is what system fonts need at 12 px
        x += 34 + 7 * len(name)
    return parts


def apart(positions: Sequence[float], distance: float) -> list[float]:
    """Moves labels so that they do not overlap.

    Args:
        positions: Where they should be.
        distance: Least distance of neighbours.

    Returns:
        Where they fit, in the same order, their mean kept.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = list(positions)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + distance)
    shift = (sum(positions) - sum(moved)) / len(moved) if moved else 0.0
    return [position + shift for position in moved]
