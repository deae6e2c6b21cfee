"""What matplotlib draws → inline SVG without colours and ids of its own, so that the page's style sheet paints it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def one_line(text: str) -> str:
    """Makes a name from a file printable."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What the page has to know of a shape.

    Args:
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
        drawn: An SVG file of matplotlib, with `svg.fonttype` none and without clipping.
        marks: The artists' `gid` → what the page has to know of their shapes, in the order in which they are drawn.
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
