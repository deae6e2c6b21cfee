"""What the slide libraries do differently: one way to read pixels for OpenSlide and tiffslide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def read_rgba(handle: Any, corner: tuple[int, int], level: int, size_px: tuple[int, int]) -> Image.Image:
    """Reads pixels of one level as OpenSlide does, whichever library reads them.

    Args:
        handle: An `openslide.OpenSlide` or a `tiffslide.TiffSlide`.
        corner: Top-left corner x, y in level-0 pixels; may lie outside.
        level: Number of the level, 0 the largest.
        size_px: Width and height in pixels of the level.

    Returns:
        The region in mode RGBA, transparent where the slide holds no pixels.
    """
    if not type(handle).__module__.startswith("tiffslide"):
        region: Image.Image = handle.read_region(corner, level, size_px)
        return region
    downsample = handle.level_downsamples[level]
    starts, fractions = zip(*(_whole_and_fraction(value / downsample) for value in corner), strict=True)
    shape = (size_px[1] + (fractions[1] > 0), size_px[0] + (fractions[0] > 0))
    region_rgba = _whole_pixels(handle, starts, level, shape)
    if not any(fractions):
        return Image.fromarray(region_rgba)
    # colours are weighted by their opacity, for what is transparent has none
    opacity = region_rgba[..., 3:].astype(np.float32)
    colours = _between(region_rgba[..., :3] * opacity, fractions)
    opacity = _between(opacity, fractions)
    blended = np.concatenate([colours / np.maximum(opacity, 1e-6), opacity], axis=2)
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def _whole_and_fraction(position: float) -> tuple[int, float]:
    """Splits a position on a level as OpenSlide does, which cuts off the fraction left of and above the slide."""
    if position < 0:
        return math.ceil(position), 0.0
    return math.floor(position), position % 1


def _between(values: NDArray[np.float32], fractions: tuple[float, ...]) -> NDArray[np.float32]:
    """Interpolates linearly at a fraction x, y of a pixel; each axis with a fraction loses its last row."""
    x, y = fractions
    if x > 0:
        values = (1 - x) * values[:, :-1] + x * values[:, 1:]
    if y > 0:
        values = (1 - y) * values[:-1] + y * values[1:]
    return values


def _whole_pixels(
    handle: Any, starts: tuple[int, ...], level: int, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Reads pixels of a level by their own coordinates, (H, W, 4); only pixels that exist are asked for."""
    pixels = np.zeros((*shape, 4), dtype=np.uint8)
    downsample = handle.level_downsamples[level]
    stops = [
        min(start + length, limit)
        for start, length, limit in zip(starts, shape[::-1], handle.level_dimensions[level], strict=True)
    ]
    firsts = [max(start, 0) for start in starts]
    if all(stop > first for first, stop in zip(firsts, stops, strict=True)):
        # rounded up, for tiffslide rounds down when it divides by the downsample again
        location = tuple(math.ceil(first * downsample - 1e-6) for first in firsts)
        size = tuple(stop - first for first, stop in zip(firsts, stops, strict=True))
        region = np.asarray(handle.read_region(location, level, size).convert("RGBA"))
        x, y = (first - start for first, start in zip(firsts, starts, strict=True))
        pixels[y : y + size[1], x : x + size[0]] = region
    return pixels
