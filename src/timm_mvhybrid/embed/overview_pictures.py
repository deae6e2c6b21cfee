"""One slide of a cohort → its picture with the tiles drawn, its features as colours, and the area of its tissue."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import Slide
from ..data.tile_drawing import coloured_tiles, tint_tiles
from ..data.tissue import tissue_mask
from ..runtime.atomic_file import write_file
from .embedding_store import StoredPatches, read_batches
from .feature_colours import ColourBasis
from .overview_rows import side_level0

_JPEG_QUALITY = 80
_MASK_PX = 1024
"""Longer side of the thumbnail that tissue is measured on."""
_SMALLEST_OUTLINED_PX = 12
"""Of tiles in a picture that is shown at a third of its size."""


def draw_slide(path: Path, patches: StoredPatches, output: Path, size_px: int) -> float | None:
    """Writes the slide with its tiles tinted, as a JPEG.

    Args:
        path: The slide.
        patches: Its tiles.
        output: The picture to write.
        size_px: Its longer side.

    Returns:
        Area of the tissue in mm²; None where the size of a pixel is unknown.

    Raises:
        DataError: The slide cannot be read.
        OutputError: The disk does not take the picture.
    """
    um_per_px = patches.um_per_px_level0
    slide = Slide(path, um_per_px)
    try:
        thumbnail = slide.thumbnail(max(max(slide.dimensions) / max(_MASK_PX, size_px), 1.0))
    finally:
        slide.close()
    tissue = float(tissue_mask(thumbnail)[0].mean()) * slide.dimensions[0] * slide.dimensions[1]
    picture = Image.fromarray(thumbnail)
    picture.thumbnail((size_px, size_px))
    _tint(picture, patches, slide.dimensions)
    _save(picture, output)
    scale = um_per_px or slide.resolution_um_per_px
    return None if scale is None else tissue * scale**2 / 1e6


def draw_tiles(patches: StoredPatches, output: Path, size_px: int) -> None:
    """Writes the tiles alone, on white, for a slide that is not at hand.

    Raises:
        OutputError: The disk does not take the picture.
    """
    dimensions = slide_dimensions(patches)
    picture = Image.new("RGB", picture_size(dimensions, size_px), (255, 255, 255))
    _tint(picture, patches, dimensions)
    _save(picture, output)


def draw_components(patches: StoredPatches, basis: ColourBasis, output: Path, size_px: int) -> None:
    """Writes each tile in the colour of its features, as a PNG that is transparent elsewhere.

    Raises:
        DataError: An embedding cannot be read.
        OutputError: The disk does not take the picture.
    """
    colours = np.concatenate([basis.colours(batch) for batch in read_batches(patches.path)])
    dimensions = slide_dimensions(patches)
    assert patches.coords is not None
    picture = coloured_tiles(
        picture_size(dimensions, size_px), patches.coords, side_level0(patches) or 1.0, dimensions, colours
    )
    _save(picture, output)


def slide_dimensions(patches: StoredPatches) -> tuple[int, int]:
    """Looks up width and height of a slide in level-0 px; of older files, how far the tiles reach."""
    stated = patches.attributes.get("slide_dimensions_px")
    if isinstance(stated, list) and len(stated) == 2:
        return int(stated[0]), int(stated[1])
    assert patches.coords is not None
    width, height = np.ceil(patches.coords.max(axis=0) + (side_level0(patches) or 1.0)).astype(int).tolist()
    return width, height


def picture_size(dimensions: tuple[int, int], size_px: int) -> tuple[int, int]:
    """Shrinks width and height so that the longer one is a picture's, and neither is 0."""
    scale = min(size_px / max(dimensions), 1.0)
    return max(round(dimensions[0] * scale), 1), max(round(dimensions[1] * scale), 1)


def _tint(picture: Image.Image, patches: StoredPatches, dimensions: tuple[int, int]) -> None:
    if patches.coords is not None:
        side = side_level0(patches) or 1.0
        tint_tiles(picture, patches.coords, side, dimensions, smallest_outlined_px=_SMALLEST_OUTLINED_PX)


def _save(picture: Image.Image, output: Path) -> None:
    content = io.BytesIO()
    if output.suffix == ".png":
        picture.save(content, "PNG")
    else:
        picture.save(content, "JPEG", quality=_JPEG_QUALITY)
    write_file(output, content.getvalue())
