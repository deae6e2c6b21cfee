"""An image element of a SpatialData store → a tiled TIFF that slide libraries open, block by block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.tiff_tags import quiet_tifffile
from ..runtime.atomic_file import OutputFile, claimed, make_folder, remove_leftovers
from ..runtime.errors import DataError, check_space
from ..runtime.extras import require
from .store_elements import EXTRA, choose_element, level0, open_store, quiet_spatialdata

_TILE_PX = 512
_ROW_TILES = 4
"""Rows of tiles that are read at once: stores have blocks of other sizes, and each is read as often as rows meet it."""


def write_image_element(
    store: str | Path,
    path: str | Path,
    image: str | None = None,
    *,
    um_per_px: float | None = None,
    overwrite: bool = False,
) -> str:
    """Writes an image of a store as a tiled TIFF; one that is there already, of the same image, is kept.

    Args:
        store: The store.
        path: The TIFF.
        image: Name of the image; None takes the only one.
        um_per_px: Size of its px in µm, which the file then states.
        overwrite: Replace a file that is of another image, or states another size.

    Returns:
        Name of the image.

    Raises:
        DataError: If there is no such image, it is not of red, green and blue in 8 bits, or a file that is there already
            may not be replaced.
        OutputError: If the disk does not take it, or another process writes it.
        MissingPackageError: If spatialdata or tifffile is not installed.
    """
    store, path = Path(store), Path(path)
    name = choose_element(store, "images", image)
    pixels = _rgb(store, name)
    height, width = pixels.sizes["y"], pixels.sizes["x"]
    facts = {"store": store.name, "image": name, "size": [width, height], "um_per_px": um_per_px}
    description = json.dumps(facts, ensure_ascii=True)
    make_folder(path.parent)
    with claimed(path):
        remove_leftovers(path)
        if path.exists() and not overwrite:
            if _description(path) == description:
                return name
            raise DataError(
                f"{path}: exists already, and is not image '{name}' of {store} at `slide_resolution_um_per_px={um_per_px}`; choose "
                "another `output` or `sample_id`, or replace it with `overwrite=True`"
            )
        check_space(path, width * height)
        _write(path, pixels, description, um_per_px)
    return name


def _rgb(store: Path, name: str) -> Any:
    """Opens the image, lazy, (c, y, x) with its three colours first."""
    image = level0(open_store(store).images[name])
    where = store / "images" / name
    if image.dtype != np.uint8 or image.sizes["c"] not in (3, 4):
        raise DataError(
            f"{where}: has {image.sizes['c']} channels of {image.dtype}; give an image of red, green and blue in 8 bits, or "
            "the scan itself by `slide`"
        )
    channels = [str(channel).lower() for channel in image.coords["c"].values]
    order = [
        next((at for at, channel in enumerate(channels) if channel in words), None) for words in _COLOURS
    ]
    if None in order:
        raise DataError(
            f"{where}: its channels are {', '.join(channels)}, not red, green and blue; give a stained image, or the scan "
            "itself by `slide`"
        )
    return image.isel(c=order)


_COLOURS = (("r", "red", "0"), ("g", "green", "1"), ("b", "blue", "2"))
"""Names of channels; spatialdata numbers those that were given none."""


def _write(path: Path, pixels: Any, description: str, um_per_px: float | None) -> None:
    tifffile = require("tifffile", EXTRA)
    resolution = {}
    if um_per_px is not None:
        resolution = {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"}
    shape = (pixels.sizes["y"], pixels.sizes["x"], 3)
    with OutputFile(path) as output, quiet_tifffile(), quiet_spatialdata():
        with tifffile.TiffWriter(output, bigtiff=shape[0] * shape[1] * 3 > 2**31) as writer:
            writer.write(
                _tiles(pixels, output),
                shape=shape,
                dtype=np.uint8,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="zlib",
                description=description,
                metadata=None,
                **resolution,
            )
        output.finish()


def _tiles(pixels: Any, output: OutputFile) -> Iterator[NDArray[np.uint8]]:
    """Yields tiles in rows, padded with white."""
    height, width = pixels.sizes["y"], pixels.sizes["x"]
    step = _TILE_PX * _ROW_TILES
    for top in range(0, height, step):
        band = np.moveaxis(np.asarray(pixels[:, top : top + step].data.compute()), 0, 2)
        output.check()
        for row in range(0, len(band), _TILE_PX):
            for left in range(0, width, _TILE_PX):
                tile = np.full((_TILE_PX, _TILE_PX, 3), 255, np.uint8)
                part = band[row : row + _TILE_PX, left : left + _TILE_PX]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


def _description(path: Path) -> str | None:
    tifffile = require("tifffile", EXTRA)
    try:
        with quiet_tifffile(), tifffile.TiffFile(path) as file:
            return str(file.pages[0].description)
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return None
