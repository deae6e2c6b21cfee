"""Whole slides: file or folder → regions at any resolution, the same whichever library opens it, OpenSlide first."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.errors import DataError, NotASlideError, PatchError, RemoteError
from .dicom import dicom_files, dicom_series, is_dicom
from .folder import on_white
from .level_image import ZARR_SUFFIX, DicomImage, LevelImage, ZarrImage, is_zarr
from .process_handle import ProcessHandle
from .remote_path import AnyPath, RemotePath, as_path
from .slide_resolution import stated_um_per_px, usable_um_per_px
from .tiff_tags import TiffTags, quiet_tifffile, read_tiff_tags


def is_slide_folder(folder: AnyPath) -> bool:
    """Whether a folder is one slide: a store of OME-Zarr, or the files of one series of DICOM."""
    if isinstance(folder, RemotePath):
        return is_zarr(folder)
    return folder.is_dir() and (is_zarr(folder) or len(dicom_series(dicom_files(folder))) == 1)


def open_library(path: AnyPath, tags: TiffTags) -> Any:
    """Opens a slide with the first library that reads it right.

    Returns:
        An ``OpenSlide``, the ``TiffSlide`` that imitates it, or a ``LevelImage``.

    Raises:
        NotASlideError: If no library is installed or none can open the file.
        DataError: If the one that can open it would get its pixels wrong, or a folder holds several slides.
    """
    reasons = []
    if isinstance(path, RemotePath):
        return ZarrImage(path)
    openers: list[tuple[str, Callable[[Path], Any], str]] = [
        ("OpenSlide", _openslide, tags.openslide_problem),
        ("tiffslide", _tiffslide, tags.tiffslide_problem),
    ]
    problems = (tags.openslide_problem, tags.tiffslide_problem)
    if path.is_dir() and is_zarr(path):
        openers = [("zarr", ZarrImage, "")]
    elif path.is_dir():
        files = _files_of_one_slide(path)
        openers = [
            ("OpenSlide", lambda _: _openslide(files[0]), ""),
            ("wsidicom", lambda _: DicomImage(files), ""),
        ]
    elif tags.has_inner_levels:
        openers.reverse()
    elif is_dicom(path):
        openers[1:] = [("wsidicom", lambda _: DicomImage(_files_beside(path)), "")]
    for name, opener, problem in openers:
        if problem:
            reasons.append(f"{name} {problem}")
            continue
        try:
            with quiet_tifffile():
                return opener(path)
        except ImportError:
            extra = "dicom" if name == "wsidicom" else "slides"
            reasons.append(f"{name} is not installed; pip install 'timm-mvhybrid[{extra}]' brings it")
        except DataError:
            raise
        # the libraries pass on whatever their layers (libtiff, tifffile, zarr, imagecodecs) raise on a broken file
        except Exception as error:
            reasons.append(f"{name}: {str(error) or type(error).__name__}")
    message = " ".join(f"{path}: cannot be opened as a slide ({'; '.join(reasons)})".split())
    if any(problems):
        raise DataError(f"{message}; write it as a tiled TIFF of 8-bit RGB")
    raise NotASlideError(message)


def _openslide(path: Path) -> Any:
    import openslide

    slide = openslide.OpenSlide(str(path))
    # otherwise each slide that is open keeps 32 MB of its own
    cache = _openslide_cache(os.getpid())
    if cache is not None:
        slide.set_cache(cache)
    return slide


@lru_cache(maxsize=1)
def _openslide_cache(process: int) -> Any:
    """Makes the cache that all slides of a process share; None where OpenSlide is older than 4.0."""
    import openslide

    try:
        return openslide.OpenSlideCache(_OPENSLIDE_CACHE_BYTES)
    except (openslide.OpenSlideVersionError, AttributeError):
        return None


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


def _files_of_one_slide(folder: Path) -> list[Path]:
    """Lists the DICOM files of a folder, which must be of one slide: OpenSlide and wsidicom would take one of several."""
    series = dicom_series(dicom_files(folder))
    if not series:
        raise NotASlideError(
            f"{folder}: a folder, and neither a store of OME-Zarr nor one with files of DICOM"
        )
    if len(series) > 1:
        raise DataError(
            f"{folder}: holds {len(series)} slides of DICOM (series); give a file of one, such as {min(series.values())[0]}"
        )
    (files,) = series.values()
    return files


def _files_beside(file: Path) -> list[Path]:
    """Lists the DICOM files that belong to the same slide as one of them."""
    series = dicom_series(dicom_files(file.parent))
    return next((files for name, files in series.items() if name and file in files), [file])


def read_rgba(handle: Any, corner: tuple[int, int], level: int, size_px: tuple[int, int]) -> Image.Image:
    """Reads pixels of one level as OpenSlide does, whichever library reads them.

    The corner is x, y in level-0 pixels and may lie outside; the size is in pixels of the level, of which 0 is the largest.

    Returns:
        The region in mode RGBA, transparent where the slide holds no pixels.
    """
    if not isinstance(handle, LevelImage) and not type(handle).__module__.startswith("tiffslide"):
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
    """Reads pixels of a level by their own coordinates, not through OpenSlide, (H, W, 4), transparent outside."""
    pixels = np.zeros((size_px[1], size_px[0], 4), dtype=np.uint8)
    first = [max(value, 0) for value in start]
    limits = handle.level_dimensions[level]
    width, height = (
        min(value + length, limit) - begin
        for value, length, limit, begin in zip(start, size_px, limits, first, strict=True)
    )
    # it pads with opaque black, so only pixels that exist are asked for
    if width > 0 and height > 0:
        x, y = first[0] - start[0], first[1] - start[1]
        here = pixels[y : y + height, x : x + width]
        if isinstance(handle, LevelImage):
            region = handle.read_pixels(level, (first[0], first[1]), (width, height))
            here[..., 3] = 255
        else:
            location = tuple(_level0(value, handle.level_downsamples[level]) for value in first)
            region = np.asarray(handle.read_region(location, level, (width, height)).convert("RGBA"))
        here[..., : region.shape[2]] = region
    return pixels


def _level0(pixel: int, downsample: float) -> int:
    """Finds the level-0 coordinate that tiffslide, which divides and rounds down, maps to a pixel of a level."""
    location = math.floor(pixel * downsample)
    return location if int(location / downsample) == pixel else location + 1


SLIDE_FOLDER_SUFFIXES = (ZARR_SUFFIX,)
SLIDE_SUFFIXES = tuple(".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .svslide .czi .dcm .qptiff".split())
_THUMBNAIL_BLOCK_PX = 4096
_WHOLE_PIXEL_BLOCK_PX = 1024
_STRIP_PX = 1 << 21
_OPENSLIDE_CACHE_BYTES = 16 << 20


class Slide(ProcessHandle):
    """One slide, read in level-0 coordinates at any scale.

    Args:
        path: The slide: a file, the folder of a slide of DICOM, or an OME-Zarr image or SpatialData store, which may be
            on another machine.
        resolution_um_per_px: Resolution of level 0 in µm per pixel; None takes what the slide states.
        as_openslide: Whether its levels shall be those that OpenSlide has, which sees the largest one of OME-TIFF alone.

    Attributes:
        states_resolution: Whether the slide states a resolution, usable or not.
        resolution_um_per_px: Resolution of level 0; None if none is given and that of the slide cannot be used.
        resolution_problem: Why it cannot be used; empty if there is a resolution.

    Raises:
        DataError: If the file cannot be opened, or its pixels are not colours of 8 bits.
    """

    def __init__(
        self, path: str | AnyPath, resolution_um_per_px: float | None = None, *, as_openslide: bool = False
    ) -> None:
        self.path = as_path(path)
        self._tags = (
            read_tiff_tags(self.path)
            if isinstance(self.path, Path) and not self.path.is_dir()
            else TiffTags()
        )
        if as_openslide:
            self._tags = replace(self._tags, has_inner_levels=False)
        handle = self.handle
        self.dimensions: tuple[int, int] = (int(handle.dimensions[0]), int(handle.dimensions[1]))
        self.level_dimensions = [(int(width), int(height)) for width, height in handle.level_dimensions]
        self.level_downsamples = [float(downsample) for downsample in handle.level_downsamples]
        stated = self._tags.um_per_px or stated_um_per_px(handle)
        self.states_resolution = stated is not None
        self.resolution_um_per_px, self.resolution_problem = (
            (resolution_um_per_px, "") if resolution_um_per_px else usable_um_per_px(stated)
        )

    def _open(self) -> Any:
        return open_library(self.path, self._tags)

    def read(
        self, corner: tuple[float, float], size_level0: tuple[float, float], size_px: tuple[int, int]
    ) -> Image.Image:
        """Reads a region at a chosen size, from the smallest level that is still fine enough.

        Args:
            corner: Top-left corner x, y in level-0 pixels.
            size_level0: Width and height of the region in level-0 pixels.
            size_px: Width and height of the result in pixels.

        Returns:
            The region in mode RGB; white where the slide holds no pixels. Resized with antialiasing unless the
            level has exactly the wanted size.

        Raises:
            PatchError: If the library cannot decode the region.
            RemoteError: If another machine does not answer.
        """
        scale = min(size_level0[0] / size_px[0], size_level0[1] / size_px[1])
        # writers round level sizes, so a level counts as fine enough within one percent
        fine_enough = [
            level for level, downsample in enumerate(self.level_downsamples) if downsample <= scale * 1.01
        ]
        level = max(fine_enough, key=lambda index: self.level_downsamples[index], default=0)
        downsample = self.level_downsamples[level]
        # from inside the slide, because left of and above it OpenSlide cuts off fractions of a pixel
        outside = [max(math.ceil(-start / downsample), 0) for start in corner]
        starts = [start + skip * downsample for start, skip in zip(corner, outside, strict=True)]
        location = (math.floor(starts[0] + 1e-6), math.floor(starts[1] + 1e-6))
        left, top = (max(start - at, 0.0) / downsample for start, at in zip(starts, location, strict=True))
        width, height = size_level0[0] / downsample, size_level0[1] / downsample
        canvas_size = (math.ceil(left + width - 1e-6), math.ceil(top + height - 1e-6))
        canvas = Image.new("RGB", canvas_size, (255, 255, 255))
        inside = (canvas_size[0] - outside[0], canvas_size[1] - outside[1])
        if inside[0] > 0 and inside[1] > 0:
            for skipped, strip in self._strips(location, level, inside):
                canvas.paste(on_white(strip), (outside[0], outside[1] + skipped))
        if canvas_size == size_px:
            return canvas
        box = (left, top, min(left + width, canvas_size[0]), min(top + height, canvas_size[1]))
        return canvas.resize(size_px, Image.Resampling.BICUBIC, box=box)

    def _strips(
        self, location: tuple[int, int], level: int, size_px: tuple[int, int]
    ) -> Iterator[tuple[int, Image.Image]]:
        """Reads a region from top to bottom, with the rows above each part; in RGBA, which copies take as much as again."""
        width, height = size_px
        downsample = self.level_downsamples[level]
        # between pixels of the level, parts would not be what the whole is
        rows = max(_STRIP_PX // width, 1) if downsample.is_integer() else height
        for start in range(0, height, rows):
            corner = (location[0], location[1] + start * int(downsample) if start else location[1])
            yield start, self._read_rgba(corner, level, (width, min(rows, height - start)))

    def read_level(
        self,
        corner: tuple[int, int],
        level: int,
        size_px: tuple[int, int],
        *,
        padding: tuple[int, int, int] = (255, 255, 255),
    ) -> Image.Image:
        """Reads whole pixels of one level, as OpenSlide's ``read_region(corner, level, size)`` does.

        Between the pixels of a level OpenSlide interpolates linearly, left of and above the slide it moves to the next
        whole pixel; both are done in the same way where tiffslide reads.

        Args:
            corner: Top-left corner x, y in level-0 pixels; may lie outside.
            level: Number of the level, 0 the largest.
            size_px: Width and height in pixels of the level.
            padding: Colour where the slide holds no pixels.

        Returns:
            The region in mode RGB. What is partly transparent, as at the slide's edge between two pixels, keeps its
            colour as ``convert("RGB")`` does.

        Raises:
            PatchError: If the library cannot decode the region.
        """
        region = self._read_rgba(corner, level, size_px)
        canvas = Image.new("RGB", size_px, padding)
        canvas.paste(
            region.convert("RGB"), mask=region.getchannel("A").point(lambda alpha: 255 * (alpha > 0))
        )
        return canvas

    def _read_rgba(self, corner: tuple[int, int], level: int, size_px: tuple[int, int]) -> Image.Image:
        handle = self.handle
        try:
            return read_rgba(handle, corner, level, size_px)
        # what is not reached is not corrupt
        except RemoteError:
            raise
        # each library raises its own errors and those of its decoders
        except Exception as error:
            # after an error OpenSlide refuses every further read, so the next read opens the slide again
            self.close()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PatchError(
                f"{self.path}: unreadable region at x={corner[0]}, y={corner[1]} ({reason})"
            ) from error

    def thumbnail(self, downsample: float) -> NDArray[np.uint8]:
        """Shrinks the whole slide.

        The downsample is in level-0 pixels per pixel of the thumbnail, (H, W, 3) uint8, at least one pixel each.
        """
        width, height = self.thumbnail_size(downsample)
        thumbnail = np.empty((height, width, 3), dtype=np.uint8)
        for place, block in self.thumbnail_blocks(downsample):
            thumbnail[place] = block
        return thumbnail

    def thumbnail_size(self, downsample: float) -> tuple[int, int]:
        """Computes width and height of a thumbnail in pixels."""
        width, height = (max(round(length / downsample), 1) for length in self.dimensions)
        return width, height

    def thumbnail_blocks(self, downsample: float) -> Iterator[tuple[tuple[slice, slice], NDArray[np.uint8]]]:
        """Yields a thumbnail by parts, rows and columns and (h, w, 3), so that a slide without small levels fits in memory."""
        width, height = self.thumbnail_size(downsample)
        step_x, step_y = self.dimensions[0] / width, self.dimensions[1] / height
        level_downsample = max((d for d in self.level_downsamples if d <= downsample), default=1.0)
        block = max(int(_THUMBNAIL_BLOCK_PX * level_downsample / downsample), 1)
        # whole pixels of a level are the same in smaller parts, which take less memory
        if step_x == step_y == level_downsample and level_downsample.is_integer():
            block = min(block, _WHOLE_PIXEL_BLOCK_PX)
        for y in range(0, height, block):
            for x in range(0, width, block):
                size_px = (min(block, width - x), min(block, height - y))
                region = self.read(
                    (x * step_x, y * step_y), (size_px[0] * step_x, size_px[1] * step_y), size_px
                )
                yield (slice(y, y + size_px[1]), slice(x, x + size_px[0])), np.asarray(region)
