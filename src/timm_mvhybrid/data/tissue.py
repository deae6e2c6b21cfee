"""Tissue mask and tile grid: thumbnail → mask → coordinates of the tiles that hold tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from tyro.conf import arg

from ..runtime.errors import DataError

# Glass and JPEG noise stay below this chroma (0-255); without a floor, Otsu would split the noise of a blank slide.
CHROMA_FLOOR = 12
# On a slide that is all tissue, Otsu would separate pale from dark tissue and lose the pale stain.
CHROMA_CEILING = 20


@dataclass(frozen=True, kw_only=True)
class TilingOptions:
    """How a slide is cut into patches.

    Attributes:
        resolution_um_per_px: Wanted resolution in µm/px.
        patch_size_px: Side of the square patches in px at that resolution.
        overlap_px: Pixels shared by neighbouring patches at that resolution.
        min_tissue: Smallest fraction of tissue (0 to 1) that a patch must hold.
        slide_resolution_um_per_px: Resolution of the slide's largest level in µm/px, for slides that state none or a
            wrong one; None takes the slide's own.

    Raises:
        DataError: If a value is outside its range.
    """

    resolution_um_per_px: Annotated[float, arg(name="resolution", metavar="UM_PER_PX")] = 0.5
    patch_size_px: Annotated[int, arg(name="patch-size", metavar="PX")] = 256
    overlap_px: Annotated[int, arg(name="overlap", metavar="PX")] = 0
    min_tissue: Annotated[float, arg(metavar="FRACTION")] = 0.5
    slide_resolution_um_per_px: Annotated[float | None, arg(name="slide-resolution", metavar="UM_PER_PX")] = (
        None
    )

    def __post_init__(self) -> None:
        if not 0 < self.resolution_um_per_px < math.inf:
            raise DataError(
                f"`resolution_um_per_px` must be finite and above 0, not {self.resolution_um_per_px}"
            )
        if self.patch_size_px < 1:
            raise DataError(f"`patch_size_px` must be at least 1, not {self.patch_size_px}")
        if not 0 <= self.overlap_px < self.patch_size_px:
            raise DataError(
                f"`overlap_px` must be at least 0 and below the patch size of {self.patch_size_px} px, not {self.overlap_px}"
            )
        if not 0 <= self.min_tissue <= 1:
            raise DataError(f"`min_tissue` must lie between 0 and 1, not {self.min_tissue}")
        given = self.slide_resolution_um_per_px
        if given is not None and not 0 < given < math.inf:
            raise DataError(f"`slide_resolution_um_per_px` must be finite and above 0, not {given}")


_COUNTED_AT_ONCE = 1 << 20


def otsu_threshold(values: NDArray[np.uint8]) -> int:
    """Finds the level that separates a histogram of uint8 values into the two most distinct classes.

    Source: Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9 (1979), maximum between-class variance.

    Returns:
        The threshold; values above it are the upper class. 0 for an empty or constant array.

    Examples:
        >>> otsu_threshold(np.array([3, 4, 5, 90, 91], dtype=np.uint8))
        5
    """
    # in parts, because counting makes each value eight bytes long
    flat = values.ravel()
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, flat.size, _COUNTED_AT_ONCE):
        counts += np.bincount(flat[start : start + _COUNTED_AT_ONCE], minlength=256)
    frequency = counts / max(values.size, 1)
    below = np.cumsum(frequency)
    mean_below = np.cumsum(frequency * np.arange(256))
    spread = below * (1 - below)
    between = np.zeros(256)
    # rounding leaves 1e-17 where one class is empty; dividing by that would give the maximum
    valid = spread > 1e-9
    between[valid] = (mean_below[-1] * below[valid] - mean_below[valid]) ** 2 / spread[valid]
    return int(between.argmax())


def tissue_mask(thumbnail: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], int]:
    """Marks what is stained: pixels whose chroma (largest minus smallest channel) exceeds Otsu's threshold.

    The threshold is kept between ``CHROMA_FLOOR`` and ``CHROMA_CEILING``, so that a blank slide has no tissue and a
    slide full of tissue keeps its pale parts.

    Returns:
        The mask, (H, W) bool, and the chroma threshold used, 0 to 255.
    """
    return chroma_mask(chroma_of(thumbnail))


def chroma_of(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Subtracts the smallest channel from the largest, (H, W, 3) → (H, W)."""
    chroma: NDArray[np.uint8] = picture.max(axis=2) - picture.min(axis=2)
    return chroma


def chroma_mask(chroma: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], int]:
    """Marks what is stained by the chroma, (H, W), as ``tissue_mask`` does."""
    threshold = min(max(otsu_threshold(chroma), CHROMA_FLOOR), CHROMA_CEILING)
    return chroma > threshold, threshold


def tile_grid(dimensions: tuple[int, int], patch_size_level0: float, step_level0: float) -> NDArray[np.int64]:
    """Lays tiles over a slide from its top-left corner, row by row; only whole tiles are kept.

    All lengths, the slide's width and height included, are level-0 pixels; the step is the distance of neighbours.

    Returns:
        Top-left corners, (N, 2) int64 as x, y.

    Examples:
        >>> tile_grid((512, 300), 256, 256).tolist()
        [[0, 0], [256, 0]]
    """
    axes = []
    for length in dimensions:
        # half a pixel of tolerance: a fractional tile size must not cost the last tile of an exact multiple
        num_tiles = max(int(np.floor((length - patch_size_level0 + 0.5) / step_level0)) + 1, 0)
        axes.append(np.round(np.arange(num_tiles) * step_level0).astype(np.int64))
    x, y = np.meshgrid(axes[0], axes[1])
    return np.stack([x.ravel(), y.ravel()], axis=1)


def tissue_fraction(
    mask: NDArray[np.bool_],
    coords: NDArray[np.int64],
    patch_size_level0: float,
    dimensions: tuple[int, int],
) -> NDArray[np.float64]:
    """Measures how much of each tile is tissue, 0 to 1, (N,) float64.

    The mask, (H, W), is of the whole slide; corners, (N, 2), side and the slide's dimensions are level-0 pixels.
    """
    height, width = mask.shape
    scale = np.array([width / dimensions[0], height / dimensions[1]])
    limit = np.array([width, height])
    # a tile narrower than a mask pixel still covers the one pixel it lies in
    start = np.minimum(np.floor(coords * scale + 0.5).astype(np.int64), limit - 1)
    stop = np.minimum(np.floor((coords + patch_size_level0) * scale + 0.5).astype(np.int64), limit)
    stop = np.maximum(stop, start + 1)
    (left, top), (right, bottom) = start.T, stop.T
    inside = np.empty(len(coords), dtype=np.int64)
    # tiles of a grid share their rows; sums of the whole mask would take eight bytes a pixel
    bands, band_of = np.unique(np.stack([top, bottom], axis=1), axis=0, return_inverse=True)
    order = np.argsort(band_of.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(band_of.ravel(), minlength=len(bands)))
    for (first, last), begin, end in zip(bands.tolist(), [0, *ends[:-1]], ends, strict=True):
        summed = np.concatenate([[0], np.cumsum(mask[first:last].sum(axis=0, dtype=np.int64))])
        tiles = order[begin:end]
        inside[tiles] = summed[right[tiles]] - summed[left[tiles]]
    fraction: NDArray[np.float64] = inside / ((right - left) * (bottom - top))
    return fraction
