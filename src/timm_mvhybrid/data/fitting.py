"""Patches of any size → pixels of one size, by Pillow, in evaluation and in the online probe alike."""

from __future__ import annotations

import numpy as np
from PIL import Image


def fit_image(patch: Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings an RGB patch, an image or (H, W, 3) uint8, to the height and width that a model takes.

    Returns:
        (height, width, 3) uint8: the patch itself where it fits, otherwise resized (bicubic, antialiased) until it
        covers the size and cropped around the centre.
    """
    height, width = size
    if isinstance(patch, np.ndarray):
        if patch.shape[:2] == size:
            return patch
        patch = Image.fromarray(patch)
    if patch.size != (width, height):
        scale = max(width / patch.width, height / patch.height)
        covering = (max(round(patch.width * scale), width), max(round(patch.height * scale), height))
        if patch.size != covering:
            patch = patch.resize(covering, Image.Resampling.BICUBIC)
        left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
        patch = patch.crop((left, top, left + width, top + height))
    return np.asarray(patch)
