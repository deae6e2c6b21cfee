"""One interface to the slide libraries: OpenSlide, and tiffslide where OpenSlide is missing or cannot open the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.errors import DataError, NotASlideError
from .tiff_tags import TiffTags, quiet_tifffile


def open_library(path: Path, tags: TiffTags) -> Any:
    """Opens a slide with the first library that reads it right.

    Returns:
        An ``openslide.OpenSlide``, or the ``tiffslide.TiffSlide`` that imitates it, with its levels parsed.

    Raises:
        NotASlideError: If no library is installed or none can open the file.
        DataError: If the one that can open it would get its pixels wrong.
    """
    reasons = []
    problems = (tags.openslide_problem, tags.tiffslide_problem)
    for name, opener, problem in zip(
        ("OpenSlide", "tiffslide"), (_openslide, _tiffslide), problems, strict=True
    ):
        if problem:
            reasons.append(f"{name} {problem}")
            continue
        try:
            with quiet_tifffile():
                return opener(path)
        except ImportError:
            reasons.append(f"{name} is not installed; pip install 'timm-mvhybrid[slides]' brings it")
        # the libraries pass on whatever their layers (libtiff, tifffile, zarr, imagecodecs) raise on a broken file
        except Exception as error:
            reasons.append(f"{name}: {str(error) or type(error).__name__}")
    message = " ".join(f"{path}: cannot be opened as a slide ({'; '.join(reasons)})".split())
    if any(problems):
        raise DataError(f"{message}; write it as a tiled TIFF of 8-bit RGB")
    raise NotASlideError(message)


def _openslide(path: Path) -> Any:
    import openslide

    return openslide.OpenSlide(str(path))


def _tiffslide(path: Path) -> Any:
    import tiffslide

    handle = tiffslide.TiffSlide(str(path))
    try:
        # it parses a file only when first asked, and a broken file must fail here
        handle.level_downsamples  # noqa: B018
    except BaseException:
        handle.close()
        raise
    return handle


def stated_um_per_px(handle: Any) -> tuple[float, float] | None:
    """Reads the resolution that the slide states.

    Returns:
        µm per pixel of level 0, x and y; None where it states none.
    """
    for library in ("openslide", "tiffslide"):
        try:
            x, y = (float(handle.properties[f"{library}.mpp-{axis}"]) for axis in "xy")
        except (KeyError, TypeError, ValueError):
            continue
        return x, y
    return None


def read_rgba(handle: Any, corner: tuple[int, int], level: int, size_px: tuple[int, int]) -> Image.Image:
    """Reads pixels of one level as OpenSlide does, whichever library reads them.

    Args:
        handle: An ``openslide.OpenSlide`` or a ``tiffslide.TiffSlide``.
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
    (x, x_fraction), (y, y_fraction) = (_whole_and_fraction(value / downsample) for value in corner)
    width, height = size_px[0] + (x_fraction > 0), size_px[1] + (y_fraction > 0)
    pixels = _whole_pixels(handle, (x, y), level, (width, height))
    if not x_fraction and not y_fraction:
        return Image.fromarray(pixels)
    # colours count by their opacity, because what is transparent has none
    opacity = pixels[..., 3:].astype(np.float32)
    colours = _interpolate(pixels[..., :3] * opacity, x_fraction, y_fraction)
    opacity = _interpolate(opacity, x_fraction, y_fraction)
    blended = np.concatenate([colours / np.maximum(opacity, 1e-6), opacity], axis=2)
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def _whole_and_fraction(position: float) -> tuple[int, float]:
    """Splits a position on a level as OpenSlide does, which drops the fraction left of and above the slide."""
    if position < 0:
        return math.ceil(position), 0.0
    # cairo, which draws for OpenSlide, places pixels on a grid of 1/256
    position = round(position * 256) / 256
    return math.floor(position), position % 1


def _interpolate(values: NDArray[np.float32], x: float, y: float) -> NDArray[np.float32]:
    """Interpolates (H, W, C) linearly at a fraction of a pixel; an axis with a fraction loses its last row."""
    if x > 0:
        values = (1 - x) * values[:, :-1] + x * values[:, 1:]
    if y > 0:
        values = (1 - y) * values[:-1] + y * values[1:]
    return values


def _whole_pixels(
    handle: Any, start: tuple[int, int], level: int, size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Reads pixels of a level by their own coordinates through tiffslide, (H, W, 4), transparent outside."""
    pixels = np.zeros((size_px[1], size_px[0], 4), dtype=np.uint8)
    first = [max(value, 0) for value in start]
    limits = handle.level_dimensions[level]
    width, height = (
        min(value + length, limit) - begin
        for value, length, limit, begin in zip(start, size_px, limits, first, strict=True)
    )
    # it pads with opaque black, so only pixels that exist are asked for
    if width > 0 and height > 0:
        location = tuple(_level0(value, handle.level_downsamples[level]) for value in first)
        region = np.asarray(handle.read_region(location, level, (width, height)).convert("RGBA"))
        x, y = first[0] - start[0], first[1] - start[1]
        pixels[y : y + height, x : x + width] = region
    return pixels


def _level0(pixel: int, downsample: float) -> int:
    """Finds the level-0 coordinate that tiffslide, which divides and rounds down, maps to a pixel of a level."""
    location = math.floor(pixel * downsample)
    return location if int(location / downsample) == pixel else location + 1
