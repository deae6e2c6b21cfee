"""Patches of one slide at given corners, and those of the grid's tiles that hold tissue."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.errors import DataError, NoResolutionError, NoTissueError
from .remote_path import AnyPath, as_path
from .slide import Slide
from .tissue import TilingOptions, chroma_mask, chroma_of, tile_grid, tissue_fraction

_MASK_UM_PER_PX = 8.0


def level0_scale(resolution_um_per_px: float, native_um_per_px: float) -> float:
    """Computes how many level-0 px a px of a patch has on a side.

    One percent is within the scanners' own tolerance, and resampling would blur needlessly: there the scale is 1.
    """
    scale = resolution_um_per_px / native_um_per_px
    return 1.0 if abs(scale - 1) <= 0.01 else scale


class SlidePatches:
    """Patches of one slide; a subclass says which.

    Attributes:
        path: The file the patches come from.
        slide: The slide.
        coords: Top-left corners in level-0 pixels, (N, 2) as x, y.
        patch_size_px: Side of a patch in pixels.
        patch_size_level0: The same in pixels of level 0.
    """

    barcodes = None
    paths = None
    path: AnyPath
    slide: Slide
    coords: NDArray[np.int64]
    patch_size_px: int
    patch_size_level0: float

    def __len__(self) -> int:
        """Returns the number of patches."""
        return len(self.coords)

    def __getitem__(self, index: int) -> Image.Image:
        """Reads one patch in mode RGB, ``patch_size_px`` on each side."""
        x, y = self.coords[index].tolist()
        side = self.patch_size_level0
        return self.slide.read((x, y), (side, side), (self.patch_size_px, self.patch_size_px))

    def name(self, index: int) -> str:
        """Names one patch for messages, by file, number and level-0 corner."""
        x, y = self.coords[index].tolist()
        return f"{self.path} patch {index} at x={x}, y={y}"

    def close(self) -> None:
        """Closes the slide; the next read opens it again."""
        self.slide.close()


class SlideSource(SlidePatches):
    """The patches of a slide that hold tissue, in rows from the top left.

    Args:
        path: The slide.
        options: Resolution, patch size, overlap and smallest fraction of tissue.

    Raises:
        DataError: If the slide cannot be opened or is smaller than a patch.
        NoResolutionError: If it states no resolution, and none is given.
        NoTissueError: If it has no tissue.
    """

    def __init__(self, path: str | AnyPath, options: TilingOptions | None = None) -> None:
        options = options or TilingOptions()
        self.path = as_path(path)
        self.slide = Slide(path, options.slide_resolution_um_per_px)
        native = self.slide.resolution_um_per_px
        if native is None:
            raise NoResolutionError(
                f"{self.path}: {self.slide.resolution_problem}; give it with `slide_resolution_um_per_px`"
            )
        scale = level0_scale(options.resolution_um_per_px, native)
        self.resolution_um_per_px: float = native if scale == 1 else options.resolution_um_per_px
        if scale < 1:
            warnings.warn(
                f"{self.path}: the slide has {native:g} µm/px, coarser than the requested "
                f"{options.resolution_um_per_px:g}; its patches are enlarged",
                stacklevel=2,
            )
        self.patch_size_px = options.patch_size_px
        self.patch_size_level0 = options.patch_size_px * scale
        if self.patch_size_level0 < 1:
            raise DataError(
                f"{self.path}: a patch of {options.patch_size_px} px at {options.resolution_um_per_px:g} µm/px is smaller "
                f"than one pixel of the slide at {native:g} µm/px; raise `resolution_um_per_px`, or correct "
                "`slide_resolution_um_per_px`"
            )
        dimensions = self.slide.dimensions
        grid = tile_grid(
            dimensions, self.patch_size_level0, (options.patch_size_px - options.overlap_px) * scale
        )
        wanted = f"{options.patch_size_px} px at {options.resolution_um_per_px:g} µm/px"
        if len(grid) == 0:
            raise DataError(
                f"{self.path}: the slide ({dimensions[0]} × {dimensions[1]} px at {native:g} µm/px) is smaller than "
                f"one patch of {wanted}; lower `patch_size_px` or `resolution_um_per_px`"
            )
        # a mask coarser than a few pixels per patch could not distinguish half-full patches from full ones
        downsample = max(min(_MASK_UM_PER_PX / native, self.patch_size_level0 / 4), 1.0)
        width, height = self.slide.thumbnail_size(downsample)
        # of a large slide the thumbnail itself would take more than all else that is needed to read it
        chroma = np.empty((height, width), dtype=np.uint8)
        darkest, brightest = 255, 0
        for place, block in self.slide.thumbnail_blocks(downsample):
            chroma[place] = chroma_of(block)
            darkest, brightest = min(darkest, int(block.min())), max(brightest, int(block.max()))
        mask, threshold = chroma_mask(chroma)
        fraction = tissue_fraction(mask, grid, self.patch_size_level0, dimensions)
        self.coords = grid[fraction >= options.min_tissue]
        # workers' processes must not inherit what this process opened
        self.slide.close()
        if len(self.coords) == 0:
            if not chroma.any() and brightest > darkest:
                raise DataError(
                    f"{self.path}: the slide is grey, and tissue is recognised by its colour; take every patch "
                    "with `min_tissue=0`"
                )
            raise NoTissueError(
                f"{self.path}: no tissue found: no patch of {wanted} holds {options.min_tissue:.0%} tissue (the fullest "
                f"holds {fraction.max():.1%}, chroma threshold {threshold} of 255); lower `min_tissue`"
            )
