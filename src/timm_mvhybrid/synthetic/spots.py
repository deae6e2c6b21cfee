"""Where spots are measured and what is cut around them: number of spots → a hexagonal grid; slide → patches, barcodes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SPOT_PITCH_UM = 100.0
PATCH_SIZE_PX = 224
PATCH_RESOLUTION_UM_PER_PX = 0.5
PATCH_SIZE_UM = PATCH_SIZE_PX * PATCH_RESOLUTION_UM_PER_PX
# half a patch is 56 µm; the rest keeps the tissue's edge out of most patches
MARGIN_UM = 72.0


def place_spots(
    num_spots: int, pitch_um: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Places spots on a hexagonal grid whose neighbours are ``pitch_um`` apart.

    Returns:
        Row of each spot, (N,); its column, (N,); and its centre in µm of the slide, (N, 2).
    """
    per_row = math.ceil(math.sqrt(num_spots * math.sqrt(0.75)))
    rows, places = np.divmod(np.arange(num_spots), per_row)
    # Visium counts columns in half pitches, so that every second row sits between the columns of the first
    columns = 2 * places + rows % 2
    positions = np.stack([columns * pitch_um / 2, rows * pitch_um * math.sqrt(0.75)], axis=1)
    return rows, columns, positions + MARGIN_UM


def patch_side_px(um_per_px: float) -> int:
    """Computes the side of a patch in px of a slide."""
    return round(PATCH_SIZE_PX * PATCH_RESOLUTION_UM_PER_PX / um_per_px)


def cut_patches(slide: NDArray[np.uint8], coords: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """Cuts patches of ``side`` px at their top left corners, (N, 2), and resizes them, (N, 224, 224, 3)."""
    image = Image.fromarray(slide)
    size = (PATCH_SIZE_PX, PATCH_SIZE_PX)
    cut = [
        image.crop((x, y, x + side, y + side)).resize(size, Image.Resampling.BICUBIC)
        for x, y in coords.tolist()
    ]
    return np.stack([np.asarray(patch) for patch in cut])


def draw_barcodes(num: int, generator: np.random.Generator) -> tuple[str, ...]:
    """Draws names of spots that look like Visium's, all of them different."""
    letters = np.array(list("ACGT"))
    barcodes: dict[str, None] = {}
    while len(barcodes) < num:
        barcodes["".join(letters[generator.integers(4, size=16)]) + "-1"] = None
    return tuple(barcodes)
