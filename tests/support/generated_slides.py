"""Slides made for tests: white glass with one stained rectangle whose pixels encode where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

REAL_SLIDE = Path(__file__).resolve().parents[2] / "examples" / "data" / "CMU-1-Small-Region.svs"


def slide_pixels(width: int, height: int, tissue: tuple[int, int, int, int] | None) -> np.ndarray:
    """White with a rectangle (left, top, right, bottom) of pinks that change smoothly with x and y."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    if tissue is not None:
        left, top, right, bottom = tissue
        y, x = np.mgrid[top:bottom, left:right]
        pixels[top:bottom, left:right, 0] = 200
        pixels[top:bottom, left:right, 1] = 40 + 60 * x / width
        pixels[top:bottom, left:right, 2] = 100 + 60 * y / height
    return pixels


def write_slide(
    path: Path,
    *,
    um_per_px: float | tuple[float, float] | None = 0.5,
    size: tuple[int, int] = (1024, 768),
    tissue: tuple[int, int, int, int] | None = (256, 256, 768, 512),
    num_levels: int = 3,
) -> np.ndarray:
    """Writes a pyramidal tiled TIFF, each level half as large, and returns the pixels of level 0."""
    pixels = slide_pixels(*size, tissue)
    resolution = {}
    if um_per_px is not None:
        x, y = um_per_px if isinstance(um_per_px, tuple) else (um_per_px, um_per_px)
        resolution = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    image = Image.fromarray(pixels)
    with tifffile.TiffWriter(path) as writer:
        for level in range(num_levels):
            shrunk = image.resize((size[0] >> level, size[1] >> level), Image.Resampling.BOX)
            writer.write(
                np.asarray(shrunk),
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(level > 0),
                metadata=None,
                **(resolution if level == 0 else {}),
            )
    return pixels


def wave(x: np.ndarray) -> np.ndarray:
    """Grey level at a level-0 position x of the middle of a pixel; rises by up to 6.5 a pixel."""
    return 127 + 100 * np.sin(2 * np.pi * x / 97)


def write_odd_pyramid(path: Path, *, reduction: int = 2, smooth: bool = False) -> list[np.ndarray]:
    """Writes an Aperio-like pyramid whose second level is rounded down, and returns the levels' pixels.

    Noise is drawn for each level apart, so that a pixel of the wrong level or place cannot pass; smooth levels show
    `wave`.
    """
    width, height = 1203, 907
    draw = np.random.default_rng(0).integers
    levels = []
    for size in ((width, height), (width // reduction, height // reduction)):
        if smooth:
            middles = (np.arange(size[0]) + 0.5) * width / size[0]
            pixels = np.rint(wave(middles)).astype(np.uint8)[None, :, None].repeat(size[1], 0).repeat(3, 2)
        else:
            pixels = draw(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        levels.append(pixels)
    description = "Aperio Image Library v11\n|AppMag = 20|MPP = 0.5"
    options = {"photometric": "rgb", "metadata": None, "description": description}
    with tifffile.TiffWriter(path) as writer:
        writer.write(levels[0], tile=(256, 256), **options)
        # the second directory of an SVS is its thumbnail
        writer.write(levels[0][:64, :64].copy(), rowsperstrip=16, **options)
        writer.write(levels[1], tile=(256, 256), **options)
    return levels
