"""Spots + slide image → patches around the spots, cut when they are read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import open_slide
from ..data.slide_source import SlidePatches, level0_scale
from ..runtime.errors import DataError, ParameterError
from .spot_sample import PatchOptions, SpotSample

LARGEST_DISAGREEMENT = 0.03
"""Between the µm/px that the spots give and those that the image states; beyond it one of them is wrong."""


class SpotPatches(SlidePatches):
    """Patches around the spots of a sample, white beyond the image.

    They are cut at whole level-0 px, as ``embed`` cuts a slide: where the slide has the patches' resolution, within one
    percent, no pixel is resampled.

    Args:
        sample: The spots.
        slide: Their image: a whole slide, or a JPEG, PNG or other image.
        options: Size and resolution of the patches.
        um_per_px: Size of a level-0 px in µm; None takes what the spots give, or what the image states.

    Attributes:
        um_per_px: Size of a level-0 px in µm.
        stated_um_per_px: What the image states; None if that is nothing usable.
        resolution_um_per_px: Of the patches.
        num_over_edge: Patches that reach beyond the image.

    Raises:
        DataError: If the image cannot be read, the size of its px is unknown or contradicts the spots, or a spot lies
            outside.
    """

    def __init__(
        self,
        sample: SpotSample,
        slide: str | Path,
        options: PatchOptions | None = None,
        *,
        um_per_px: float | None = None,
    ) -> None:
        options = options or PatchOptions()
        if um_per_px is not None and not 0 < um_per_px < np.inf:
            raise ParameterError(f"`slide_resolution_um_per_px` must be finite and above 0, not {um_per_px}")
        self.path = Path(slide)
        self.slide = open_slide(self.path)
        self.stated_um_per_px = self.slide.resolution_um_per_px
        self.um_per_px = um_per_px or self._agreed(sample)
        _check_inside(sample, self.path, self.slide.dimensions)
        _check_size(sample, self.path, self.slide.dimensions)
        scale = level0_scale(options.resolution_um_per_px, self.um_per_px)
        self.resolution_um_per_px = self.um_per_px if scale == 1 else options.resolution_um_per_px
        self.patch_size_px = options.patch_size_px
        self.patch_size_level0 = options.patch_size_px * scale
        if self.patch_size_level0 < 1:
            raise DataError(
                f"{self.path}: a patch of {options.side_um:g} µm is smaller than a px of {self.um_per_px:g} µm; give the "
                "image at full resolution"
            )
        self.coords = np.round(sample.spatial - self.patch_size_level0 / 2).astype(np.int64)
        over = (self.coords < 0) | (self.coords + self.patch_size_level0 > np.array(self.slide.dimensions))
        self.num_over_edge = int(over.any(axis=1).sum())

    def _agreed(self, sample: SpotSample) -> float:
        derived, stated = sample.um_per_px, self.stated_um_per_px
        if derived is None and stated is None:
            raise DataError(
                f"{self.path}: {self.slide.resolution_problem}; give it with `slide_resolution_um_per_px`"
            )
        if derived is None or stated is None:
            return derived or stated or np.nan
        if abs(derived / stated - 1) > LARGEST_DISAGREEMENT:
            raise DataError(
                f"{self.path}: states {stated:.4g} µm/px, and of sample '{sample.sample_id}' by {sample.um_per_px_from} a px is "
                f"{derived:.4g} µm, {abs(derived / stated - 1):.0%} apart; give {sample.image}, or "
                f"settle it with `slide_resolution_um_per_px={float(f'{derived:.4g}')}`"
            )
        return derived

    @property
    def attributes(self) -> dict[str, Any]:
        """HEST's attributes of a patch h5."""
        return {
            "patch_size_src": self.patch_size_level0,
            "patch_size_target": self.patch_size_px,
            "downsample": self.patch_size_level0 / self.patch_size_px,
            "pixel_size": self.um_per_px,
        }


def _check_size(sample: SpotSample, path: Path, dimensions: tuple[int, int]) -> None:
    """Warns of an image that is not as large as the one that the spots were placed in."""
    if sample.image_size_px is None:
        return
    if any(
        abs(found / wanted - 1) > LARGEST_DISAGREEMENT
        for found, wanted in zip(dimensions, sample.image_size_px, strict=True)
    ):
        width, height = sample.image_size_px
        warnings.warn(
            f"{path}: has {dimensions[0]} × {dimensions[1]} px, and the image that the spots of sample '{sample.sample_id}' were "
            f"placed in had about {width:.0f} × {height:.0f}; look at the picture of spots on the tissue, and give {sample.image}",
            stacklevel=3,
        )


def _check_inside(sample: SpotSample, path: Path, dimensions: tuple[int, int]) -> None:
    places: NDArray[np.float64] = sample.spatial
    outside = np.flatnonzero(((places < 0) | (places >= np.array(dimensions))).any(axis=1))
    if len(outside):
        x, y = places[outside[0]].tolist()
        raise DataError(
            f"{path}: the spot '{sample.barcodes[outside[0]]}' at x={x:g}, y={y:g} px lies outside the image of "
            f"{dimensions[0]} × {dimensions[1]} px ({len(outside)} of {len(places)} do); give {sample.image}"
        )
