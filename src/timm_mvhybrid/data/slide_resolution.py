"""The resolution of a slide's largest level: what the file states, and whether that can be right."""

from __future__ import annotations

import math
from typing import Any

from .level_image import LevelImage

# Image editors write 72 or 96 dpi (353 or 265 µm/px) when they do not know better; no scanner is this coarse.
_COARSEST_UM_PER_PX = 50.0
# An objective of 100 × and NA 1.4 resolves 0.2 µm; pixels below a quarter of that come from wrong units or wrong tags.
_FINEST_UM_PER_PX = 0.05
# scanners measure x and y apart and differ by less than a tenth of a percent
_LARGEST_ANISOTROPY = 0.01


def stated_um_per_px(handle: Any) -> tuple[float, float] | None:
    """Reads the resolution that the slide states, µm per pixel of level 0, x and y; None where it states none."""
    if isinstance(handle, LevelImage):
        return handle.um_per_px
    for library in ("openslide", "tiffslide"):
        try:
            x, y = (float(handle.properties[f"{library}.mpp-{axis}"]) for axis in "xy")
        except (KeyError, TypeError, ValueError):
            continue
        return x, y
    return None


def usable_um_per_px(um_per_px: tuple[float, float] | None) -> tuple[float | None, str]:
    """Accepts a stated resolution in µm per pixel of level 0, x and y, or says why it cannot be used.

    Returns:
        One resolution for both directions in µm per pixel, and an empty text; or None, and what is wrong.
    """
    if um_per_px is None:
        return None, "the slide states no usable resolution"
    x, y = um_per_px
    # files keep the resolution as a fraction, of more or less accuracy
    stated = f"{x:.4g}" if f"{x:.4g}" == f"{y:.4g}" else f"{x:.4g} × {y:.4g}"
    if not (0 < x < _COARSEST_UM_PER_PX and 0 < y < _COARSEST_UM_PER_PX):
        return None, f"the slide states {stated} µm/px, which no scanner has"
    if min(x, y) < _FINEST_UM_PER_PX:
        return None, f"the slide states {stated} µm/px, finer than any light microscope"
    if max(x, y) > (1 + _LARGEST_ANISOTROPY) * min(x, y):
        return None, f"the slide states {stated} µm/px (x × y), so that patches would not be square in µm"
    return math.sqrt(x * y), ""
