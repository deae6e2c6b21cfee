"""Whole slides: file → regions at any resolution, and the patches that hold tissue.

Opened through OpenSlide, and through tiffslide where OpenSlide is absent or does not know the file.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError, NotASlideError, PatchError
from .folder import on_white
from .slide_library import read_rgba
from .tissue import TilingOptions, tile_grid, tissue_mask, tissue_share

SLIDE_SUFFIXES = tuple(".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .svslide .czi .dcm .qptiff".split())
# Image editors write 72 or 96 dpi (353 or 265 µm/px) when they know nothing; no scanner is this coarse.
_COARSEST_UM_PER_PX = 50.0
_MASK_UM_PER_PX = 8.0
_THUMBNAIL_BLOCK_PX = 4096


def _open(path: Path) -> Any:
    """Opens a slide with the first library that can.

    Args:
        path: The slide.

    Returns:
        An `openslide.OpenSlide` or the `tiffslide.TiffSlide` that imitates it.

    Raises:
        NotASlideError: If no library is installed or none can open the file.
    """
    reasons = []
    try:
        import openslide

        return openslide.OpenSlide(str(path))
    except ImportError:
        reasons.append("OpenSlide is not installed")
    except openslide.OpenSlideError as error:
        reasons.append(f"OpenSlide: {error}")
    try:
        import tiffslide

        return tiffslide.TiffSlide(str(path))
    except ImportError:
        reasons.append("tiffslide is not installed; pip install 'timm-mvhybrid[slides]' brings both")
    # tiffslide lets through whatever its layers (tifffile, zarr, imagecodecs) raise on a broken file
    except Exception as error:
        reasons.append(f"tiffslide: {str(error) or type(error).__name__}")
    raise NotASlideError(f"{path}: cannot be opened as a slide ({'; '.join(reasons)})".replace("\n", " "))


class Slide:
    """One slide, read in level-0 coordinates at any scale.

    The library's handle is opened on first use in each process and left out of pickles.

    Args:
        path: The slide.
        resolution_um_per_px: Resolution of level 0 in µm per pixel; None takes what the slide states.

    Raises:
        DataError: If the file cannot be opened.
    """

    def __init__(self, path: str | Path, resolution_um_per_px: float | None = None) -> None:
        self.path = Path(path)
        self._handle: Any = None
        self._process = -1
        handle = self.handle
        self.dimensions: tuple[int, int] = (int(handle.dimensions[0]), int(handle.dimensions[1]))
        self.level_dimensions = [(int(width), int(height)) for width, height in handle.level_dimensions]
        self.level_downsamples = [float(downsample) for downsample in handle.level_downsamples]
        self.resolution_um_per_px = resolution_um_per_px or self._stated_resolution(handle.properties)

    def _stated_resolution(self, properties: Any) -> float | None:
        values = []
        for axis in ("x", "y"):
            for library in ("openslide", "tiffslide"):
                try:
                    values.append(float(properties[f"{library}.mpp-{axis}"]))
                except (KeyError, TypeError, ValueError):
                    continue
                break
        plausible = len(values) == 2 and all(0 < value < _COARSEST_UM_PER_PX for value in values)
        return math.sqrt(values[0] * values[1]) if plausible else None

    @property
    def handle(self) -> Any:
        """The library's slide object of this process."""
        if self._handle is None or self._process != os.getpid():
            # handles hold file positions and caches that forked processes must not share
            self.close()
            self._handle = _open(self.path)
            self._process = os.getpid()
        return self._handle

    def close(self) -> None:
        """Closes the handle; the next read opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __del__(self) -> None:
        """Closes the handle, for tiffslide leaves its file open otherwise."""
        if getattr(self, "_handle", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the handle out of pickles."""
        return {**self.__dict__, "_handle": None}

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
        """
        scale = min(size_level0[0] / size_px[0], size_level0[1] / size_px[1])
        # writers round level sizes, so a level counts as fine enough within one percent
        fine_enough = [
            level for level, downsample in enumerate(self.level_downsamples) if downsample <= scale * 1.01
        ]
        level = max(fine_enough, key=lambda index: self.level_downsamples[index], default=0)
        downsample = self.level_downsamples[level]
        left, top = corner[0] / downsample, corner[1] / downsample
        x, y = math.floor(left + 1e-6), math.floor(top + 1e-6)
        width, height = size_level0[0] / downsample, size_level0[1] / downsample
        canvas_size = (math.ceil(left - x + width - 1e-6), math.ceil(top - y + height - 1e-6))
        canvas = Image.new("RGB", canvas_size, (255, 255, 255))
        # the libraries pad beyond the edge differently, so only pixels that exist are asked for
        x_start, y_start = max(x, 0), max(y, 0)
        x_stop = min(x + canvas_size[0], self.level_dimensions[level][0])
        y_stop = min(y + canvas_size[1], self.level_dimensions[level][1])
        if x_stop > x_start and y_stop > y_start:
            # rounded up, for the libraries round down when they divide by the downsample again
            location = (math.ceil(x_start * downsample - 1e-6), math.ceil(y_start * downsample - 1e-6))
            try:
                region = self.handle.read_region(location, level, (x_stop - x_start, y_stop - y_start))
            # each library raises errors of its own and of its decoders
            except Exception as error:
                # OpenSlide refuses every further read after an error, so the next read starts afresh
                self.close()
                raise PatchError(
                    f"{self.path}: unreadable region at x={corner[0]:.0f}, y={corner[1]:.0f} ({error})"
                ) from error
            canvas.paste(on_white(region), (x_start - x, y_start - y))
        if canvas_size == size_px:
            return canvas
        box = (
            left - x,
            top - y,
            min(left - x + width, canvas_size[0]),
            min(top - y + height, canvas_size[1]),
        )
        return canvas.resize(size_px, Image.Resampling.BICUBIC, box=box)

    def read_level(
        self,
        corner: tuple[int, int],
        level: int,
        size_px: tuple[int, int],
        *,
        padding: tuple[int, int, int] = (255, 255, 255),
    ) -> Image.Image:
        """Reads whole pixels of one level, as OpenSlide's `read_region(corner, level, size)` gives them.

        Between the pixels of a level OpenSlide interpolates linearly, left of and above the slide it moves to the next
        whole pixel; both are done alike where tiffslide reads.

        Args:
            corner: Top-left corner x, y in level-0 pixels; may lie outside.
            level: Number of the level, 0 the largest.
            size_px: Width and height in pixels of the level.
            padding: Colour where the slide holds no pixels.

        Returns:
            The region in mode RGB. What is partly transparent, as at the slide's edge between two pixels, keeps its
            colour as `convert("RGB")` does.

        Raises:
            PatchError: If the library cannot decode the region.
        """
        try:
            region = read_rgba(self.handle, corner, level, size_px)
        # each library raises errors of its own and of its decoders
        except Exception as error:
            # OpenSlide refuses every further read after an error, so the next read starts afresh
            self.close()
            raise PatchError(
                f"{self.path}: unreadable region at x={corner[0]}, y={corner[1]} ({error})"
            ) from error
        canvas = Image.new("RGB", size_px, padding)
        canvas.paste(region.convert("RGB"), mask=region.getchannel("A").point(lambda alpha: 255 * (alpha > 0)))
        return canvas

    def thumbnail(self, downsample: float) -> NDArray[np.uint8]:
        """Shrinks the whole slide, in blocks so that a slide without small levels fits in memory.

        Args:
            downsample: Level-0 pixels per pixel of the thumbnail.

        Returns:
            The thumbnail, (H, W, 3) uint8, at least one pixel in each direction.
        """
        width, height = (max(round(length / downsample), 1) for length in self.dimensions)
        step_x, step_y = self.dimensions[0] / width, self.dimensions[1] / height
        level_downsample = max((d for d in self.level_downsamples if d <= downsample), default=1.0)
        block = max(int(_THUMBNAIL_BLOCK_PX * level_downsample / downsample), 1)
        thumbnail = np.empty((height, width, 3), dtype=np.uint8)
        for y in range(0, height, block):
            for x in range(0, width, block):
                size_px = (min(block, width - x), min(block, height - y))
                region = self.read(
                    (x * step_x, y * step_y), (size_px[0] * step_x, size_px[1] * step_y), size_px
                )
                thumbnail[y : y + size_px[1], x : x + size_px[0]] = np.asarray(region)
        return thumbnail


class SlideSource:
    """The patches of a slide that hold tissue, in rows from the top left.

    Args:
        path: The slide.
        options: Resolution, patch size, overlap and smallest share of tissue.

    Raises:
        DataError: If the slide cannot be opened, states no resolution, is smaller than a patch or has no tissue.
    """

    barcodes = None
    paths = None

    def __init__(self, path: str | Path, options: TilingOptions | None = None) -> None:
        options = options or TilingOptions()
        self.path = Path(path)
        self.slide = Slide(path, options.slide_resolution_um_per_px)
        native = self.slide.resolution_um_per_px
        if native is None:
            raise DataError(
                f"{self.path}: the slide states no usable resolution; give it with --slide-resolution UM_PER_PX"
            )
        scale = options.resolution_um_per_px / native
        self.resolution_um_per_px: float = options.resolution_um_per_px
        if abs(scale - 1) <= 0.01:
            # one percent is within the scanners' own tolerance, and resampling would blur for nothing
            scale, self.resolution_um_per_px = 1.0, native
        if scale < 1:
            warnings.warn(
                f"{self.path}: the slide has {native:g} µm/px, coarser than the wanted "
                f"{options.resolution_um_per_px:g}; its patches are enlarged",
                stacklevel=2,
            )
        self.patch_size_px: int = options.patch_size_px
        self.patch_size_level0 = options.patch_size_px * scale
        dimensions = self.slide.dimensions
        grid = tile_grid(
            dimensions, self.patch_size_level0, (options.patch_size_px - options.overlap_px) * scale
        )
        wanted = f"{options.patch_size_px} px at {options.resolution_um_per_px:g} µm/px"
        if len(grid) == 0:
            raise DataError(
                f"{self.path}: the slide ({dimensions[0]} × {dimensions[1]} px at {native:g} µm/px) is smaller than "
                f"one patch of {wanted}; lower --patch-size or --resolution"
            )
        # a mask coarser than a few pixels per patch could not tell half-full patches from full ones
        downsample = max(min(_MASK_UM_PER_PX / native, self.patch_size_level0 / 4), 1.0)
        mask, threshold = tissue_mask(self.slide.thumbnail(downsample))
        share = tissue_share(mask, grid, self.patch_size_level0, dimensions)
        self.coords: NDArray[np.int64] = grid[share >= options.min_tissue]
        # what this process opened must not be inherited by the workers' processes
        self.slide.close()
        if len(self.coords) == 0:
            raise DataError(
                f"{self.path}: no tissue found: no patch of {wanted} holds {options.min_tissue:.0%} tissue (the fullest "
                f"holds {share.max():.1%}, chroma threshold {threshold} of 255); lower --min-tissue"
            )

    def __len__(self) -> int:
        """Returns the number of patches."""
        return len(self.coords)

    def __getitem__(self, index: int) -> Image.Image:
        """Reads one patch.

        Args:
            index: From 0 to the number of patches.

        Returns:
            The patch in mode RGB, `patch_size_px` on each side.
        """
        x, y = self.coords[index].tolist()
        side = self.patch_size_level0
        return self.slide.read((x, y), (side, side), (self.patch_size_px, self.patch_size_px))

    def name(self, index: int) -> str:
        """Names one patch for messages.

        Args:
            index: From 0 to the number of patches.

        Returns:
            The slide and the patch's level-0 corner.
        """
        x, y = self.coords[index].tolist()
        return f"{self.path} patch {index} at x={x}, y={y}"

    def close(self) -> None:
        """Closes the slide; the next read opens it again."""
        self.slide.close()
