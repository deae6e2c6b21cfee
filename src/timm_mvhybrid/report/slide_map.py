"""Values of patches on one slide → the page's section that lays a chosen one over the slide's picture.

Everything stands in the page: the picture as a JPEG, values in 8 bits. Of each gene's predictions 256 levels between
smallest and largest are kept, of which a colour ramp shows no more, so that a value is off by at most 1/510 of that
range; the distances down to the lower bound and up to the upper one are kept in the same way, or as one number where
they are the same everywhere. 20,000 patches × 50 genes take 1.4 MB with constant intervals and 4 MB otherwise.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .page import json_element

PART = "slide_map"
"""Name of the section's style sheet and script, for ``page(parts=...)``."""
_LEVELS = 255
_JPEG_QUALITY = 82
# of what the eye sees in an interval, far below rounding of float32
_SAME = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class SlideMap:
    """Values of patches, and where they lie.

    Attributes:
        picture: The whole slide, (H, W, 3) uint8.
        dimensions_px: Width and height of the slide in level-0 px.
        corners: Top-left corners of what is coloured for each patch, level-0 px, (N, 2) as x, y.
        cell_px: Side of that in level-0 px; where patches overlap, smaller than a patch.
        genes: Names, G.
        columns: The column of each gene in the four matrices, (G,); these are not copied.
        mean: Predictions, (N, genes).
        lower: Lower bounds, (N, genes).
        upper: Upper bounds, (N, genes).
        r: Correlation of each gene on data that were left out, (G,); NaN where there is none.
        r_lower: Its lower bound, (G,).
        r_upper: Its upper bound, (G,).
        predictable: Whether a gene can be predicted at all, (G,) bool.
        distance: Of each patch to the training data, (N,).
        far: Whether that is too far to trust the intervals, (N,) bool.
        measured: What was measured at the same places, (N, genes), where that is known.
        unit: Of the values.
        r_note: What the correlation was measured on and what its bounds are, such as "over left-out studies, 95 %".
    """

    picture: NDArray[np.uint8]
    dimensions_px: tuple[int, int]
    corners: NDArray[np.float64]
    cell_px: float
    genes: Sequence[str]
    columns: NDArray[np.int64]
    mean: NDArray[np.float32]
    lower: NDArray[np.float32]
    upper: NDArray[np.float32]
    r: NDArray[np.float64]
    r_lower: NDArray[np.float64]
    r_upper: NDArray[np.float64]
    predictable: NDArray[np.bool_]
    distance: NDArray[np.float32]
    far: NDArray[np.bool_]
    measured: NDArray[np.float32] | None = None
    unit: str = "log1p counts"
    r_note: str = ""


def slide_map_section(shown: SlideMap) -> str:
    """Writes picture, choosers and data.

    Returns:
        HTML without a frame; the page's script draws the map.
    """
    views = [
        ("mean", "Prediction"),
        ("lower", "Lower bound"),
        ("upper", "Upper bound"),
        ("width", "Interval width"),
    ]
    if shown.measured is not None:
        views.append(("measured", "Measured"))
    radios = "".join(
        f'<label><input type="radio" name="map-view" value="{name}"{" checked" if name == "mean" else ""}>'
        f"<span>{text}</span></label>"
        for name, text in views
    )
    num_hidden = int((~shown.predictable).sum())
    num_far, num = int(shown.far.sum()), len(shown.far)
    height, width = shown.picture.shape[:2]
    hidden = (
        f"Show {num_hidden} genes that cannot be predicted"
        if num_hidden != 1
        else "Show 1 gene that cannot be predicted"
    )
    switch = (
        f'<label class="check"><input type="checkbox" id="gene-all"{"" if shown.predictable.any() else " checked"}> '
        f"{hidden}</label>"
        if num_hidden
        else ""
    )
    return f"""<div class="slide-map">
<div class="chooser">
<label for="gene-search">Find a gene</label>
<input type="search" id="gene-search" autocomplete="off" spellcheck="false">
{switch}
<label for="gene-list">Gene, and r on left-out data</label>
<select id="gene-list" size="16"></select>
<p class="hint" id="gene-count" role="status"></p>
</div>
<div class="stage">
<div class="controls">
<fieldset class="views"><legend>Show</legend>{radios}</fieldset>
<label for="map-opacity">Opacity<input type="range" id="map-opacity" min="0" max="100" step="5" value="75"></label>
<label class="check"><input type="checkbox" id="map-hatch" checked> Hatch far patches ({num_far:,} of {num:,})</label>
<span class="zoom" role="group" aria-label="Zoom"><button type="button" id="map-out" aria-label="Zoom out">−</button>
<button type="button" id="map-in" aria-label="Zoom in">+</button></span>
</div>
<div class="reliability" id="map-reliability" role="status"></div>
<figure data-plot="slide-map">
<div class="frame" id="map-frame" role="region" aria-label="Slide" tabindex="0">
<div class="layers" id="map-layers" style="aspect-ratio: {width} / {height}">
<img alt="The slide" src="{_picture(shown.picture)}"><canvas id="map-colours" aria-hidden="true"></canvas>
<canvas id="map-lines" tabindex="0" role="img" aria-describedby="map-readout"></canvas></div></div>
<div class="below"><div id="map-key"></div><label class="check"><input type="checkbox" id="map-shared">
{"one scale for all but the width" if shown.measured is not None else "one scale for prediction and bounds"}</label></div>
<p class="hint">Colours span the 1st to the 99th percentile.</p>
<figcaption id="map-readout" role="status">Point at a patch, or move over the map with the arrow keys, to read its values.</figcaption>
</figure></div></div>
{json_element("slide-map-data", _data(shown))}"""


def _picture(pixels: NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _data(shown: SlideMap) -> dict[str, Any]:
    width, height = shown.dimensions_px
    genes = []
    # the most reliable come first; NaN sorts last
    for index in np.argsort(-shown.r, kind="stable"):
        name, column = shown.genes[index], shown.columns[index]
        mean, lower, upper = (values[:, column] for values in (shown.mean, shown.lower, shown.upper))
        gene = {
            "name": name,
            "r": [_number(values[index]) for values in (shown.r, shown.r_lower, shown.r_upper)],
            "predictable": bool(shown.predictable[index]),
            "mean": quantised(mean),
            "below": quantised(mean - lower),
            "above": quantised(upper - mean),
        }
        if shown.measured is not None:
            gene["measured"] = quantised(shown.measured[:, column])
        genes.append(gene)
    return {
        "size": [width, height],
        "cell": shown.cell_px,
        # a quarter of a px is below what any screen shows
        "corners": _encoded(np.rint(4 * shown.corners).astype("<i4")),
        "distance": quantised(shown.distance),
        "far": _encoded(np.packbits(shown.far, bitorder="little")),
        "num": len(shown.corners),
        "unit": shown.unit,
        "note": shown.r_note,
        "genes": genes,
    }


def quantised(values: NDArray[Any]) -> dict[str, Any]:
    """Keeps 256 levels of values, (N,), or one number where they are all the same; null where one is infinite.

    Returns:
        ``low`` and ``step``, and ``levels``, bytes in base64 where there are several: a value is low + step · level.
    """
    numbers = np.asarray(values, dtype=np.float64)
    low, high = float(numbers.min(initial=np.inf)), float(numbers.max(initial=-np.inf))
    if not (np.isfinite(low) and np.isfinite(high)):
        # an interval that promises nothing has no width
        return {"low": None, "step": 0}
    if not high - low > _SAME * max(abs(low), abs(high)):
        return {"low": low, "step": 0}
    step = (high - low) / _LEVELS
    return {"low": low, "step": step, "levels": _encoded(np.rint((numbers - low) / step).astype(np.uint8))}


def _number(value: Any) -> float | None:
    return None if not np.isfinite(value) else round(float(value), 4)


def _encoded(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
