"""Predictions on a slide → GeoJSON that QuPath imports as tiles with measurements, written a patch at a time."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .slide_prediction import SlidePrediction

_CLASSES = {
    False: {"name": "Near training data", "color": [0, 114, 178]},
    True: {"name": "Far from training data", "color": [213, 94, 0]},
}
# six digits are what float32 holds
_DIGITS = 6


def geojson_lines(found: SlidePrediction, columns: NDArray[np.int64]) -> Iterator[bytes]:
    """Writes a FeatureCollection, a line for each patch.

    Coordinates are level-0 px from the slide's top-left corner, as QuPath has them. Each patch is a square of the size of
    the distance of neighbours, around the patch's middle, so that squares of overlapping patches do not. QuPath reads
    ``objectType`` tile, ``name`` (the patch's name in the h5ad), ``classification`` (near to or far from the training data)
    and ``measurements``: for each gene the prediction, and its bounds as "GENE lower" and "GENE upper".

    Args:
        found: The predictions.
        columns: Which genes.

    Yields:
        Parts of the file, UTF-8.
    """
    prediction = found.prediction
    names = [found.predictor.genes_[column] for column in columns]
    corners = found.corners.tolist()
    seed = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(found.record, sort_keys=True))
    yield b'{"type":"FeatureCollection","features":[\n'
    for row, name in enumerate(found.patch_names):
        measurements: dict[str, float] = {"Distance to training data": _number(prediction.distance[row])}
        for gene, column in zip(names, columns, strict=True):
            for suffix, values in (
                ("", prediction.mean),
                (" lower", prediction.lower),
                (" upper", prediction.upper),
            ):
                # JSON has no infinity, which bounds may be
                if np.isfinite(values[row, column]):
                    measurements[gene + suffix] = _number(values[row, column])
        feature = {
            "type": "Feature",
            "id": str(uuid.uuid5(seed, name)),
            "geometry": {
                "type": "Polygon",
                "coordinates": [_square(corners[row], found.stride_level0)],
            },
            "properties": {
                "objectType": "tile",
                "name": name,
                "classification": _CLASSES[bool(prediction.far[row])],
                "measurements": measurements,
            },
        }
        line = json.dumps(feature, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        yield (line if row == 0 else f",\n{line}").encode()
    yield b"\n]}\n"


def _square(corner: tuple[float, float], side: float) -> list[list[float]]:
    """Goes around a square, closed, in the sense that RFC 7946 asks of an outer ring."""
    left, top = corner
    right, bottom = left + side, top + side
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return [[round(value, 3) for value in point] for point in ring]


def _number(value: np.float32) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
