"""Tiles on a picture of their slide: tinted, or each in a colour of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_TILE_COLOUR = (0, 110, 60)
_TILE_OPACITY = 0.25


def tint_tiles(
    picture: Image.Image,
    corners: NDArray[np.int64],
    side: float,
    dimensions: tuple[int, int],
    *,
    smallest_outlined_px: float = 5,
) -> None:
    """Tints tiles on a picture of the whole slide, in place, and outlines them where they are large enough.

    Args:
        picture: The slide, mode RGB.
        corners: Top-left corners in level-0 px, (N, 2) as x, y.
        side: Of a tile in level-0 px.
        dimensions: Width and height of the slide in level-0 px.
        smallest_outlined_px: Side on the picture from which a tile has an outline; smaller ones would hide the slide.
    """
    layer = Image.new("L", picture.size, 0)
    drawing = ImageDraw.Draw(layer)
    outline: dict[str, Any] = {}
    if side * (np.array(picture.size) / np.array(dimensions)).min() >= smallest_outlined_px:
        outline = {"outline": 255}
    for box in _boxes(picture.size, corners, side, dimensions):
        drawing.rectangle(box, fill=round(255 * _TILE_OPACITY), **outline)
    picture.paste(Image.new("RGB", picture.size, _TILE_COLOUR), mask=layer)


def coloured_tiles(
    size_px: tuple[int, int],
    corners: NDArray[np.int64],
    side: float,
    dimensions: tuple[int, int],
    colours: NDArray[np.uint8],
) -> Image.Image:
    """Draws each tile in its colour, (N, 3) uint8, on a transparent picture of the slide, mode RGBA.

    The other arguments are those of ``tint_tiles``, with the picture's width and height.
    """
    picture = Image.new("RGBA", size_px, (0, 0, 0, 0))
    drawing = ImageDraw.Draw(picture)
    for box, colour in zip(_boxes(size_px, corners, side, dimensions), colours.tolist(), strict=True):
        drawing.rectangle(box, fill=(*colour, 255))
    return picture


def _boxes(
    size_px: tuple[int, int], corners: NDArray[np.int64], side: float, dimensions: tuple[int, int]
) -> Iterator[tuple[int, int, int, int]]:
    scale = np.array(size_px) / np.array(dimensions)
    # one pixel less: both corners of a rectangle are drawn, and neighbours must not overlap
    edges = np.round(np.concatenate([corners * scale, (corners + side) * scale - 1], axis=1)).astype(int)
    for left, top, right, bottom in edges.tolist():
        yield left, top, max(right, left), max(bottom, top)
