"""A matplotlib figure in px whose every artist says what the page's style sheet shall make of it.

It becomes inline SVG without colours and ids of its own, so that the page's style sheet paints it.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any
from xml.etree import ElementTree

from ..runtime.extras import require
from .series_looks import legend_key
from .table import signed

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def one_line(text: str) -> str:
    """Makes a name from a file printable."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What the page has to know of a shape.

    Attributes:
        classes: Classes of the style sheet, which decide its colours.
        note: Shown when the pointer rests on it; may be empty.
        attributes: Further attributes.
    """

    classes: str
    note: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


def inline_svg(drawn: str, marks: Mapping[str, Iterable[Mark]], title: str) -> str:
    """Keeps the shapes and texts of a picture, and takes their looks from the marks.

    Several pictures stand on one page, where ids would clash and a style element would style the whole page: neither
    is kept, and shapes that matplotlib defines once and refers to are written where they are used.

    Args:
        drawn: An SVG file of matplotlib, with ``svg.fonttype`` none and without clipping.
        marks: The artists' ``gid`` → what the page has to know of their shapes, in the order in which they are drawn.
        title: What the picture shows, for those who cannot see it.

    Raises:
        RuntimeError: If a shape belongs to no mark, so that no style would apply to it.
    """
    root = ElementTree.fromstring(drawn)
    box = _rounded(root.attrib["viewBox"])
    _, _, width, height = box.split()
    picture = ElementTree.Element(
        "svg", {"viewBox": box, "width": width, "height": height, "role": "img", "aria-label": title}
    )
    defined = {f"#{path.get('id')}": path.attrib["d"] for path in root.iter(f"{_NAMESPACE}path")}
    _keep(root, iter(()), {gid: iter(ordered) for gid, ordered in marks.items()}, defined, picture)
    return ElementTree.tostring(picture, encoding="unicode")


def _keep(
    group: ElementTree.Element,
    own: Iterator[Mark],
    marks: Mapping[str, Iterator[Mark]],
    defined: Mapping[str, str],
    picture: ElementTree.Element,
) -> None:
    for child in group:
        tag = child.tag.removeprefix(_NAMESPACE)
        if tag == "g":
            _keep(child, marks.get(child.get("id", ""), own), marks, defined, picture)
        elif tag in _SHAPES:
            mark = next(own, None)
            if mark is None:
                raise RuntimeError(f"matplotlib drew a {tag} that belongs to no mark")
            kept, attributes = _SHAPES[tag](child, defined)
            shape = ElementTree.SubElement(
                picture, kept, {**attributes, **mark.attributes, "class": mark.classes}
            )
            shape.text = child.text if tag == "text" else None
            if mark.note:
                ElementTree.SubElement(shape, "title").text = mark.note


def _path(element: ElementTree.Element, defined: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    return "path", {"d": _rounded(element.attrib["d"])}


def _use(element: ElementTree.Element, defined: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    place = _rounded(f"translate({element.attrib['x']} {element.attrib['y']})")
    return "path", {"d": _rounded(defined[element.attrib[_LINK]]), "transform": place}


def _text(element: ElementTree.Element, defined: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    attributes = {name: _rounded(element.attrib[name]) for name in ("x", "y")}
    turn = _rounded(element.get("transform", ""))
    if turn and not turn.startswith("rotate(0 "):
        attributes["transform"] = turn
    for declaration in element.get("style", "").split(";"):
        name, _, value = declaration.partition(":")
        if name.strip() == "text-anchor":
            attributes["text-anchor"] = value.strip()
    return "text", attributes


_SHAPES = {"path": _path, "use": _use, "text": _text}


def _rounded(written: str) -> str:
    """Rounds all numbers to hundredths of a px: less to load, and the same on every processor."""

    def shorter(number: re.Match[str]) -> str:
        text = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text

    return " ".join(_NUMBER.sub(shorter, written).split())


PAGE_WIDTH = 940
"""Room for a chart in px; what is wider is scrolled or shrunk."""

_PX_PER_INCH = 72  # matplotlib's SVG has 72 units an inch whatever the figure's resolution
_FONT_PX = {"name": 12, "tick": 11, "gene": 10, "small": 10, "heading": 13}
_STYLE = {
    "figure.dpi": _PX_PER_INCH,
    "font.family": "DejaVu Sans",  # comes with matplotlib; texts are measured by it and shown in the page's own
    "svg.fonttype": "none",
    "svg.hashsalt": "timm_mvhybrid",
    "text.parse_math": False,  # a dollar in a name is a dollar
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def chart_style() -> Iterator[None]:
    """Makes matplotlib draw the same whatever the user's own settings are; also a decorator.

    Raises:
        EvaluationError: If matplotlib is not installed.
    """
    require_matplotlib()
    with warnings.catch_warnings(), require("matplotlib.style").context(["default", _STYLE]):
        # the page's fonts have the letters that matplotlib's lacks, and their width is all that is guessed
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def require_matplotlib() -> None:
    """Imports matplotlib, quietly: it logs that it builds a list of fonts, or that it cannot keep one.

    Raises:
        EvaluationError: If it is not installed.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        require("matplotlib.figure")
    finally:
        logger.setLevel(level)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A filled box, in the units of its panel's axes.

    Attributes:
        left: Left end.
        right: Right end.
        bottom: Lower end.
        top: Upper end.
        note: Shown when the pointer rests on it.
        opacity: Of its filling.
    """

    left: float
    right: float
    bottom: float
    top: float
    note: str = ""
    opacity: float = 1.0


class Drawing:
    """One chart. Positions are in px from the upper left corner of the first panel, downwards.

    Args:
        title: What it shows, for those who cannot see it.
    """

    def __init__(self, title: str) -> None:
        self._title = one_line(title)
        self._marks: dict[str, Iterable[Mark]] = {}
        # panels lie where they are put, within this square or not: what is drawn decides the picture's size
        self._figure = require("matplotlib.figure").Figure(figsize=(1, 1), frameon=False)
        require("matplotlib.backends.backend_agg").FigureCanvasAgg(self._figure)  # measures texts

    def panel(self, left: float, top: float, width: float, height: float) -> Any:
        """Adds axes without a frame and without ticks.

        Args:
            left: Left end in px.
            top: Upper end in px.
            width: Width in px.
            height: Height in px.
        """
        box = (left, -top - height, width, height)
        axes = self._figure.add_axes([length / _PX_PER_INCH for length in box], frameon=False)
        axes.tick_params(which="both", length=0, pad=6)
        axes.set_axisbelow(True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([])
        return axes

    def mark(self, artist: Any, classes: str, note: str = "", **attributes: str) -> Any:
        """Says what an artist is to the page; nothing may be drawn that is not marked."""
        written = {key.replace("_", "-"): value for key, value in attributes.items()}
        return self._name(artist, repeat(Mark(classes=classes, note=one_line(note), attributes=written)))

    def boxes(self, axes: Any, boxes: Sequence[Box], classes: str) -> None:
        """Draws filled boxes, thousands as fast as a few."""
        corners = [
            [(box.left, box.bottom), (box.left, box.top), (box.right, box.top), (box.right, box.bottom)]
            for box in boxes
        ]
        drawn = axes.add_collection(require("matplotlib.collections").PolyCollection(corners), autolim=False)
        self._name(
            drawn,
            [
                Mark(
                    classes=classes,
                    note=one_line(box.note),
                    attributes={} if box.opacity == 1 else {"fill-opacity": f"{box.opacity:.3g}"},
                )
                for box in boxes
            ],
        )

    def _name(self, artist: Any, marks: Iterable[Mark]) -> Any:
        name = f"mark-{len(self._marks)}"
        self._marks[name] = marks
        artist.set_gid(name)
        artist.set_clip_on(False)
        return artist

    def text(self, artist: Any, classes: str = "name") -> Any:
        """Marks a text and sets its size."""
        size = _FONT_PX[classes.split()[-1]]
        artist.set_fontsize(size)
        artist.set_text(one_line(artist.get_text()))
        # turned about its anchor: the page's font makes texts of another length than they were measured with
        artist.set_rotation_mode("anchor")
        return self.mark(artist, classes, font_size=str(size))

    def ticks(
        self,
        axis: Any,
        values: Sequence[float],
        labels: Sequence[str],
        classes: str = "tick",
        *,
        grid: bool = False,
        **properties: Any,
    ) -> None:
        """Labels places along an axis."""
        axis.set_ticks(values, labels=[one_line(label) for label in labels], **properties)
        axis.grid(visible=grid)
        for label in axis.get_ticklabels():
            self.text(label, classes)
        for line, value in zip(axis.get_gridlines(), values, strict=True):
            self.mark(line, "zero" if value == 0 and axis.axis_name == "y" else "grid")

    def numbers(self, axis: Any, num: int = 5) -> list[float]:
        """Labels round numbers along an axis, with a line at each."""
        low, high = sorted(axis.get_view_interval())
        locator = require("matplotlib.ticker").MaxNLocator(num, steps=[1, 2, 2.5, 5, 10])
        near = 1e-9 * (high - low)
        values = [
            0.0 if abs(value) < near else float(value)
            for value in locator.tick_values(low, high)
            if low - near <= value <= high + near
        ]
        self.ticks(axis, values, [signed(f"{value:.6g}") for value in values], grid=True)
        return values

    def legend(
        self,
        series: Mapping[str, int],
        left: float,
        bottom: float,
        *,
        width: float = PAGE_WIDTH,
        kind: str = "marker",
        corner: str = "lower left",
    ) -> None:
        """Names the series, in as few rows as fit.

        Args:
            series: Name → index of the series, in their order.
            left: Left end in px.
            bottom: Position in px of the corner named below.
            width: Room in px; 0 puts one name into each row.
            kind: ``marker``, ``curve`` or ``bar``: what stands for a series.
            corner: ``lower left``, from which it grows upwards, or ``upper left``.
        """
        line = require("matplotlib.lines").Line2D
        looks = [legend_key(kind, index) for index in series.values()]
        for num_columns in range(max(len(series), 1), 0, -1):
            legend = self._figure.legend(
                [line([], [], **properties) for properties, _ in looks],
                # matplotlib leaves names out that start with an underscore; they are set afterwards
                [str(index) for index in series.values()],
                loc=corner,
                bbox_to_anchor=(left / _PX_PER_INCH, -bottom / _PX_PER_INCH),
                ncols=num_columns,
                frameon=False,
                fontsize=_FONT_PX["name"],
                borderpad=0,
                borderaxespad=0,
                labelspacing=0.45,
                columnspacing=1.6,
                handletextpad=0.6,
                handlelength=2.2 if kind == "curve" else 0.8,
            )
            for text, name in zip(legend.get_texts(), series, strict=True):
                text.set_text(one_line(name))
            if num_columns == 1 or legend.get_window_extent().width <= width:
                break
            legend.remove()
        for handle, (_, classes) in zip(legend.legend_handles, looks, strict=True):
            self.mark(handle, classes)
        for text in legend.get_texts():
            self.text(text)

    def svg(self) -> str:
        """Writes the chart."""
        file = io.StringIO()
        self._figure.savefig(
            file, format="svg", bbox_inches="tight", pad_inches=4 / _PX_PER_INCH, metadata=_NO_METADATA
        )
        return inline_svg(file.getvalue(), self._marks, self._title)
