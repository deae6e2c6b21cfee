"""One slide → its patch h5 and a thumbnail with the tiles drawn."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from ..runtime.atomic_file import write_file
from ..runtime.digest import file_fingerprint
from ..runtime.errors import DataError, check_space
from ..runtime.h5_output import H5Output
from ..version import __version__
from .h5_file import H5File
from .image_dataset import write_images
from .patch_h5 import PatchH5Source
from .slide_source import SlideSource
from .tissue import TilingOptions

Compression = Literal["none", "lzf", "gzip"]

_TILE_COLOUR = (0, 110, 60)
_TILE_OPACITY = 0.25
_SMALLEST_OUTLINED_PX = 5


def tile_file_matches(path: Path, slide: Path, options: TilingOptions) -> int:
    """Returns how many patches a file holds; raises DataError unless it was cut from the slide, with the options."""
    remedy = "choose another `output`, or cut it again with `overwrite=True`"
    file = H5File(path)
    try:
        stated = file.handle.attrs.get("tiling")
        fingerprint = file.handle.attrs.get("slide_fingerprint")
    finally:
        file.close()
    if not isinstance(stated, str) or fingerprint is None:
        raise DataError(f"{path}: exists and was not written by 'tile'; {remedy}")
    written, wanted = json.loads(stated), dataclasses.asdict(options)
    different = [
        f"`{name}={written.get(name)!r}` instead of {value!r}"
        for name, value in wanted.items()
        if written.get(name) != value
    ]
    if different:
        raise DataError(f"{path}: was cut with {', '.join(different)}; {remedy}")
    if fingerprint != file_fingerprint(slide):
        raise DataError(f"{path}: was cut from another file than {slide}; {remedy}")
    source = PatchH5Source(path)
    source.close()
    return len(source)


def write_tile_file(
    source: SlideSource, path: Path, options: TilingOptions, compression: Compression = "none"
) -> None:
    """Cuts a slide into a patch h5 in HEST's layout.

    ``img`` (N, H, W, 3) uint8 holds one patch per chunk, so that any patch is read by itself, and ``coords`` (N, 2)
    int64 the top-left corners in level-0 pixels. The attributes of ``img`` are HEST's: ``patch_size_src`` in level-0
    pixels, ``patch_size_target``, ``downsample`` and ``pixel_size`` in µm per level-0 pixel. Without compression a file
    is read ten times faster than with "gzip" and is about twice as large; "lzf" is in between.

    Raises:
        PatchError: If a region of the slide is unreadable.
        OutputError: If the disk does not take the file; without compression that is known before a patch is cut.
    """
    native = source.slide.resolution_um_per_px
    side = source.patch_size_px
    if compression == "none":
        check_space(path, len(source) * side * side * 3)
    with H5Output(path) as output:
        images = write_images(
            output.file,
            source,
            (side, side),
            compression=None if compression == "none" else compression,
            check=output.check,
        )
        images.attrs.update(
            {
                "patch_size_src": source.patch_size_level0,
                "patch_size_target": side,
                "downsample": source.patch_size_level0 / side,
                "pixel_size": native,
            }
        )
        output.file["coords"] = source.coords
        output.file.attrs.update(
            {
                "tiling": json.dumps(dataclasses.asdict(options)),
                "slide": source.path.name,
                "slide_fingerprint": file_fingerprint(source.path),
                "timm_mvhybrid": __version__,
            }
        )
        output.finish()


def write_thumbnail(source: SlideSource, path: Path, size_px: int) -> None:
    """Draws the slide with its tiles tinted, ``size_px`` on its longer side, as a PNG."""
    downsample = max(max(source.slide.dimensions) / size_px, 1.0)
    picture = Image.fromarray(source.slide.thumbnail(downsample))
    scale = np.array(picture.size) / np.array(source.slide.dimensions)
    layer = Image.new("L", picture.size, 0)
    drawing = ImageDraw.Draw(layer)
    outline: dict[str, Any] = {}
    if source.patch_size_level0 * scale.min() >= _SMALLEST_OUTLINED_PX:
        outline = {"outline": 255}
    tint = round(255 * _TILE_OPACITY)
    for corner in source.coords:
        # one pixel less: both corners of a rectangle are drawn, and neighbours must not overlap
        box = np.concatenate([corner * scale, (corner + source.patch_size_level0) * scale - 1])
        left, top, right, bottom = np.round(box).astype(int).tolist()
        drawing.rectangle((left, top, max(right, left), max(bottom, top)), fill=tint, **outline)
    picture.paste(Image.new("RGB", picture.size, _TILE_COLOUR), mask=layer)
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_file(path, content.getvalue())
    source.close()
