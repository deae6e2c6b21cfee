"""Spots over a small picture of their tissue, coloured by their counts: shows whether both belong together."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..report.drawing import chart_style
from ..runtime.extras import require
from .spot_sample import SpotSample

_WIDTH_INCHES = 6.0
_SMALLEST_MARK_PX = 1.5
"""Of the thumbnail: spots that are smaller could not be seen."""


@chart_style()
def draw_spots(
    sample: SpotSample, thumbnail: NDArray[np.uint8], downsample: float, um_per_px: float
) -> bytes:
    """Draws the tissue alone, and with the spots in the colour of their counts.

    Args:
        sample: The spots.
        thumbnail: The slide image, (H, W, 3) uint8.
        downsample: Level-0 px in a px of it.
        um_per_px: Size of a level-0 px in µm.

    Returns:
        A PNG.
    """
    figure_class = require("matplotlib.figure").Figure
    require("matplotlib.backends.backend_agg")
    height, width = thumbnail.shape[:2]
    panel_height = min(max(_WIDTH_INCHES * height / width, 2.0), 3 * _WIDTH_INCHES)
    figure = figure_class(figsize=(2 * _WIDTH_INCHES + 1, panel_height + 0.8), layout="constrained")
    bare, covered = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes in (bare, covered):
        axes.imshow(thumbnail)
        axes.set_axis_off()
    marks = _marks(sample, downsample, um_per_px, covered.transData)
    totals = np.asarray(sample.counts.sum(axis=1), dtype=np.float64).ravel()
    marks.set_array(np.log10(totals + 1))
    marks.set_cmap("viridis")
    marks.set_alpha(0.75)
    covered.add_collection(marks, autolim=False)
    figure.colorbar(marks, ax=covered, shrink=0.8, label="log10 (counts + 1)")
    bare.set_title(sample.sample_id)
    covered.set_title(f"{len(totals):,} spots, {totals.sum():,.0f} counts of {len(sample.genes):,} genes")
    # half a px, so that what lies at the edge is whole
    covered.set_xlim(-0.5, width - 0.5)
    covered.set_ylim(height - 0.5, -0.5)
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png", metadata={"Software": None})
    return content.getvalue()


def _marks(sample: SpotSample, downsample: float, um_per_px: float, places: Any) -> Any:
    """Makes a circle or square for each spot, in px of the thumbnail, whose first pixel's centre is at 0."""
    collections = require("matplotlib.collections")
    # level-0 px count from the edge of the first pixel
    centres = sample.spatial / downsample - 0.5
    size_um = sample.spot_size_um or 0.0
    side = max(size_um / um_per_px / downsample, _SMALLEST_MARK_PX)
    if sample.spot_shape == "circle":
        return collections.EllipseCollection(
            side, side, 0.0, units="xy", offsets=centres, offset_transform=places, linewidths=0
        )
    corners = side / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return collections.PolyCollection(centres[:, None] + corners, linewidths=0)
