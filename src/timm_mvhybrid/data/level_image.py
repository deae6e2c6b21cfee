"""Slides that neither OpenSlide nor tiffslide opens: pyramids of arrays, read by whole pixels of a level."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from .remote_path import AnyPath, RemotePath

ZARR_SUFFIX = ".zarr"
_NUM_HASHED_CHUNKS = 16
_MOST_HASHED_SIDE_PX = 1024
_MOST_HASHED_PX = 4_000_000
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zattrs")
# the units of OME-NGFF, which are those of UDUNITS-2, as far as images of tissue have them
_UM_PER_UNIT = {"meter": 1e6, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3}


class LevelImage(ABC):
    """A pyramid of RGB images.

    Args:
        sizes: Width and height of each level in pixels, the largest first.
        um_per_px: Resolution of the largest level that the file states, µm per pixel, x and y; None for none.

    Attributes:
        dimensions: Size of the largest level.
        level_dimensions: As ``sizes``.
        level_downsamples: How much smaller each level is than the largest, as OpenSlide defines it: the mean of both axes.
        um_per_px: As given.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], um_per_px: tuple[float, float] | None) -> None:
        self.level_dimensions = [(int(width), int(height)) for width, height in sizes]
        self.dimensions = self.level_dimensions[0]
        width, height = self.dimensions
        self.level_downsamples = [(width / w + height / h) / 2 for w, h in self.level_dimensions]
        self.um_per_px = um_per_px

    @abstractmethod
    def read_pixels(self, level: int, corner: tuple[int, int], size_px: tuple[int, int]) -> NDArray[np.uint8]:
        """Reads pixels of a level that exist, all in its own coordinates, as (H, W, 3) in RGB or (H, W, 4) in RGBA."""

    @abstractmethod
    def close(self) -> None:
        """Closes what is open."""


class ZarrImage(LevelImage):
    """An image of OME-Zarr, as SpatialData stores them too.

    Source: Next-generation file formats, versions 0.4 and 0.5, "multiscales" metadata (ngff.openmicroscopy.org).

    Args:
        path: The group with the levels, on this machine or another; or a SpatialData store, where it holds one image of
            tissue.

    Raises:
        ImportError: zarr is not installed.
        DataError: There is no image of 8 bits in grey, RGB or RGBA, or more than one.
        RemoteError: Another machine does not answer.
    """

    def __init__(self, path: AnyPath) -> None:
        if isinstance(path, RemotePath):
            self._given: RemotePath | None = path
            path.trying(lambda: self._read_description(path, path.zarr_group()))
            return
        import zarr

        self._given = None
        try:
            self._read_description(path, zarr.open_group(str(path), mode="r"))
        except DataError:
            raise
        except (KeyError, ValueError, OSError) as error:
            raise DataError(f"{path}: cannot be read as OME-Zarr ({error})") from error

    def _read_description(self, path: AnyPath, group: Any) -> None:
        scales = _multiscales(group)
        if scales is None:
            path, group = _only_image(path, group)
            scales = _multiscales(group)
        if not scales or not scales[0].get("datasets"):
            raise DataError(f"{path}: holds no image of OME-Zarr ('multiscales')")
        axes = [axis if isinstance(axis, str) else axis["name"] for axis in scales[0].get("axes", "tczyx")]
        if not {"x", "y"} <= set(axes):
            raise DataError(f"{path}: has the axes {', '.join(axes)}; an image needs y and x")
        self._axes = axes
        self._levels = [group[dataset["path"]] for dataset in scales[0]["datasets"]]
        problem = _no_colours(self._levels[0], axes)
        if problem:
            raise DataError(f"{path}: {problem}; give an H&E image of 8 bits in RGB")
        x, y = axes.index("x"), axes.index("y")
        sizes = [(level.shape[x], level.shape[y]) for level in self._levels]
        LevelImage.__init__(self, sizes, _stated_resolution(scales[0], axes))

    def read_pixels(self, level: int, corner: tuple[int, int], size_px: tuple[int, int]) -> NDArray[np.uint8]:
        """Reads the chunks that the pixels are in, and no others."""
        wanted = {
            axis: slice(start, start + length)
            for axis, start, length in zip("xy", corner, size_px, strict=True)
        }
        selection = tuple(wanted.get(axis, slice(None) if axis == "c" else 0) for axis in self._axes)
        array = self._levels[level]
        if self._given is None:
            pixels = np.asarray(array[selection])
        else:
            pixels = self._given.trying(lambda: np.asarray(array[selection]))
        left = [axis for axis in self._axes if axis in "cyx"]
        if "c" not in left:
            left, pixels = [*left, "c"], pixels[..., None]
        pixels = pixels.transpose([left.index(axis) for axis in "yxc"])
        return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels

    def fingerprint(self) -> str:
        """Tells one image from another by sizes, resolution, the smallest level and evenly spread chunks of the largest.

        Returns:
            32 hexadecimal digits.
        """
        known = (
            self.level_dimensions,
            self.um_per_px,
            self._axes,
            [str(level.dtype) for level in self._levels],
        )
        found = hashlib.sha256(repr(known).encode())
        smallest = self.level_dimensions[-1]
        if smallest[0] * smallest[1] <= _MOST_HASHED_PX:
            found.update(self.read_pixels(len(self._levels) - 1, (0, 0), smallest).tobytes())
        chunks = dict(zip(self._axes, self._levels[0].chunks, strict=True))
        sides = (min(chunks["x"], _MOST_HASHED_SIDE_PX), min(chunks["y"], _MOST_HASHED_SIDE_PX))
        columns, rows = (-(-size // chunks[axis]) for size, axis in zip(self.dimensions, "xy", strict=True))
        last = columns * rows - 1
        for number in sorted(
            {last * index // (_NUM_HASHED_CHUNKS - 1) for index in range(_NUM_HASHED_CHUNKS)}
        ):
            x, y = number % columns * chunks["x"], number // columns * chunks["y"]
            size_px = (min(sides[0], self.dimensions[0] - x), min(sides[1], self.dimensions[1] - y))
            found.update(self.read_pixels(0, (x, y), size_px).tobytes())
        return found.hexdigest()[:32]

    def close(self) -> None:
        """Does nothing: between two reads no file is open."""


class DicomImage(LevelImage):
    """A slide of DICOM that OpenSlide does not decode, read by wsidicom.

    Args:
        files: The files of one series.

    Raises:
        ImportError: wsidicom is not installed.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        from wsidicom import WsiDicom

        self._slide = WsiDicom.open(list(files))
        levels = list(self._slide.pyramid)
        self._numbers = [level.level for level in levels]
        size = levels[0].mpp
        um_per_px = None if size is None else (float(size.width), float(size.height))
        super().__init__([(level.size.width, level.size.height) for level in levels], um_per_px)

    def read_pixels(self, level: int, corner: tuple[int, int], size_px: tuple[int, int]) -> NDArray[np.uint8]:
        """Reads a region of a level."""
        region = self._slide.read_region(corner, self._numbers[level], size_px)
        return np.asarray(region.convert("RGB"))

    def close(self) -> None:
        """Closes all files."""
        self._slide.close()


def is_zarr(folder: AnyPath) -> bool:
    """Whether a folder is a group of zarr."""
    return any((folder / mark).is_file() for mark in _ZARR_MARKS)


def _multiscales(group: Any) -> list[dict[str, Any]] | None:
    """Finds the levels' description; None where the group is no image."""
    attributes: Mapping[str, Any] = dict(group.attrs)
    # version 0.5 keeps it one level deeper
    found = attributes.get("ome", attributes)
    return found.get("multiscales") if isinstance(found, Mapping) else None


def _only_image(path: AnyPath, store: Any) -> tuple[AnyPath, Any]:
    """Finds the image of tissue in a SpatialData store, which may hold fluorescence beside it."""
    names = sorted(store["images"].group_keys()) if "images" in store else []
    fitting = []
    for name in names:
        scales = _multiscales(store["images"][name])
        if scales and scales[0].get("datasets"):
            first = store["images"][name][scales[0]["datasets"][0]["path"]]
            axes = [
                axis if isinstance(axis, str) else axis["name"] for axis in scales[0].get("axes", "tczyx")
            ]
            if not _no_colours(first, axes):
                fitting.append(name)
    if len(fitting) != 1:
        held = (
            f"holds the images {', '.join(names)}, of which {len(fitting)} may be H&E"
            if names
            else "holds no image"
        )
        raise DataError(f"{path}: {held}; name one, such as {path / 'images' / (names or ['NAME'])[0]}")
    return path / "images" / fitting[0], store["images"][fitting[0]]


def _no_colours(level: Any, axes: Sequence[str]) -> str:
    """Says why an array is no picture of tissue; empty if it may be one."""
    lengths = dict(zip(axes, level.shape, strict=True))
    if level.dtype != np.uint8:
        return f"its values are {level.dtype}, not 8 bits"
    several = [axis for axis in axes if axis not in "cyx" and lengths[axis] > 1]
    if several:
        return f"it has {lengths[several[0]]} planes along {several[0]}"
    if lengths.get("c", 1) not in (1, 3, 4):
        return f"it has {lengths['c']} channels"
    return ""


def _stated_resolution(scale: Mapping[str, Any], axes: Sequence[str]) -> tuple[float, float] | None:
    """Reads µm per pixel of the largest level, x and y, where the axes have units of length."""
    units = {axis["name"]: axis.get("unit") for axis in scale.get("axes", ()) if not isinstance(axis, str)}
    total = dict.fromkeys("xy", 1.0)
    transformed = False
    for transform in (
        *scale["datasets"][0].get("coordinateTransformations", ()),
        *scale.get("coordinateTransformations", ()),
    ):
        if transform.get("type") == "scale" and len(transform.get("scale", ())) == len(axes):
            transformed = True
            for axis in "xy":
                total[axis] *= float(transform["scale"][axes.index(axis)])
    found = [total[axis] * _UM_PER_UNIT[units[axis]] for axis in "xy" if units.get(axis) in _UM_PER_UNIT]
    return (found[0], found[1]) if transformed and len(found) == 2 else None
