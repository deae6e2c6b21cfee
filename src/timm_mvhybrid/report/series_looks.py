"""What tells one series from another on the page: index → classes of the style sheet and shapes of markers."""

from __future__ import annotations

from typing import Any

_NUM_COLOURS = 6
_MARKERS = ("o", "s", "^", "D")
_MARKER_PX = {"o": 9, "s": 9, "^": 11, "D": 8}


def colour(series: int) -> str:
    """Names the class of a series' colour."""
    return f"colour-{series % _NUM_COLOURS}"


def bar(series: int) -> str:
    """Names the classes of a series' bars."""
    lap = series // _NUM_COLOURS % 3
    return f"{colour(series)} bar" + (f" lap-{lap}" if lap else "")


def curve(series: int) -> str:
    """Names the classes of a series' curve.

    Returns:
        Classes; where the colours start again, they come with another dash.
    """
    turn = _turn(series)
    return f"{colour(series)} series" + (f" dash-{turn}" if turn else "")


def marker(series: int) -> dict[str, Any]:
    """Chooses the shape that tells a series as its colour does.

    Returns:
        Properties of a `Line2D` that draws markers alone.
    """
    shape = _MARKERS[_turn(series)]
    return {"linestyle": "", "marker": shape, "markersize": _MARKER_PX[shape]}


def _turn(series: int) -> int:
    """Shifts shapes by one with each lap of the colours, so that the first 24 series all differ."""
    return (series + series // _NUM_COLOURS) % len(_MARKERS)


def legend_key(kind: str, series: int) -> tuple[dict[str, Any], str]:
    """Chooses what stands for a series in a legend.

    Returns:
        Properties of a `Line2D`, and classes.
    """
    if kind == "curve":
        return {"linewidth": 2}, curve(series)
    if kind == "bar":
        return {**marker(0), "marker": "s"}, bar(series)
    return marker(series), f"{colour(series)} marker"
