"""Edges of bands of spatial frequency → the bands, each with the gratings that a patch can hold of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import EvaluationError
from .scanner import COARSEST_UM_PER_PX
from .spots import PATCH_SIZE_PX, PATCH_SIZE_UM, patch_side_px

HIGHEST_CYCLES = min(PATCH_SIZE_PX, patch_side_px(COARSEST_UM_PER_PX)) // 2
"""Cycles per patch that the coarsest slide still resolves: half of the px of a patch there (Nyquist)."""


@dataclass(frozen=True, kw_only=True)
class FrequencyBand:
    """A range of spatial frequencies, the lower edge included.

    Attributes:
        low: Lower edge in cycles per patch.
        high: Upper edge in cycles per patch.
    """

    low: float
    high: float

    @property
    def name(self) -> str:
        """What genes of the band are grouped by, such as ``1-2 cycles``: in a patch."""
        return f"{self.low:g}-{self.high:g} cycles"

    @property
    def driver(self) -> str:
        """What drives them, such as ``alignment_1-2``."""
        return f"alignment_{self.low:g}-{self.high:g}"

    @property
    def wavelengths_um(self) -> tuple[float, float]:
        """Shortest and longest wavelength in µm."""
        return PATCH_SIZE_UM / self.high, PATCH_SIZE_UM / self.low

    @property
    def modes(self) -> NDArray[np.int64]:
        """Gratings that vary across the patch rather than along it.

        Returns:
            Whole cycles per patch in x and in y, (modes, 2), with |y| ≤ x / 2: within 27° of the x axis. Whole, so that
            their energy in a patch is the same whatever their phase, and that of two gratings is the sum of both.
        """
        x = np.arange(1, math.ceil(self.high))
        reach = int(x[-1]) // 2 if len(x) else 0
        y = np.arange(-reach, reach + 1)
        across, along = (axis.ravel() for axis in np.meshgrid(x, y, indexing="ij"))
        length = np.hypot(across, along)
        within = (2 * np.abs(along) <= across) & (length >= self.low) & (length < self.high)
        return np.stack([across[within], along[within]], axis=1)


def frequency_bands(edges: Sequence[float]) -> tuple[FrequencyBand, ...]:
    """Divides the frequencies at ``edges``, in cycles per patch.

    Raises:
        EvaluationError: If there are fewer than two edges, they do not rise, a band holds no grating of whole cycles, or
            the last edge is beyond what the patches resolve.
    """
    given = ", ".join(f"{edge:g}" for edge in edges)
    if len(edges) < 2 or not all(math.isfinite(edge) for edge in edges):
        raise EvaluationError(
            f"`bands` must be two or more edges in cycles per patch, not '{given}'; give such as 1,2,4,8,16"
        )
    if any(low >= high for low, high in pairwise(edges)):
        raise EvaluationError(f"`bands` must rise from edge to edge, and {given} do not")
    if edges[-1] > HIGHEST_CYCLES:
        raise EvaluationError(
            f"`bands` end at {edges[-1]:g} cycles per patch, and the coarsest slides, of {COARSEST_UM_PER_PX:g} µm per px, "
            f"resolve {HIGHEST_CYCLES} (Nyquist); end there or below"
        )
    bands = tuple(FrequencyBand(low=low, high=high) for low, high in pairwise(edges))
    for band in bands:
        if len(band.modes) == 0:
            raise EvaluationError(
                f"`bands`: no grating of whole cycles per patch lies between {band.low:g} and {band.high:g}; widen the band"
            )
    return bands
