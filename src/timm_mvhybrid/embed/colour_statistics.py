"""Patch → 22 statistics of its colours and contrast: what any encoder has to beat before its features mean anything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NAMES = (
    *(
        f"{channel} {kind}"
        for channel in ("red", "green", "blue")
        for kind in ("mean", "deviation", "p10", "p90")
    ),
    "density mean",
    "density deviation",
    "density p10",
    "density p90",
    "hue x",
    "hue y",
    "saturation",
    "gradient mean",
    "gradient deviation",
    "deviation of 8 × 8 blocks",
)
"""What the columns are."""
_BLOCKS = 8


def colour_statistics(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Computes 22 statistics of a patch, none of which knows a shape.

    Of red, green and blue, and of the optical density (−ln of the mean of the channels): mean, deviation, 10th and 90th
    percentile. Of the mean colour: its direction in the plane of hues, (x, y), and the mean saturation. Of the density:
    mean and deviation of the length of its gradient, and the deviation of its means over 8 × 8 blocks of the patch.

    Args:
        image: RGB, (height, width, 3), each side at least 8 px.

    Returns:
        (22,), in the order of ``NAMES``.
    """
    rgb = image.astype(np.float64) / 255
    channels = rgb.reshape(-1, 3)
    density = -np.log(np.maximum(rgb.mean(axis=2), 1 / 255))
    rows, columns = np.gradient(density)
    length = np.hypot(rows, columns)
    height, width = (size // _BLOCKS * _BLOCKS for size in density.shape)
    blocks = density[:height, :width].reshape(_BLOCKS, height // _BLOCKS, _BLOCKS, width // _BLOCKS)
    red, green, blue = channels.mean(axis=0)
    found = [statistic for values in (*channels.T, density.ravel()) for statistic in _four(values)]
    found += [
        red - (green + blue) / 2,
        (green - blue) * np.sqrt(3) / 2,
        float((channels.max(axis=1) - channels.min(axis=1)).mean()),
        length.mean(),
        length.std(),
        blocks.mean(axis=(1, 3)).std(),
    ]
    return np.array(found, np.float32)


def _four(values: NDArray[np.float64]) -> tuple[float, ...]:
    low, high = np.percentile(values, (10, 90))
    return float(values.mean()), float(values.std()), float(low), float(high)
