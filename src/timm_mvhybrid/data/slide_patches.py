"""What sources of one slide's patches have in common: corners in level-0 pixels, read when they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .slide import Slide


class SlidePatches:
    """Patches of one slide; a subclass says which.

    Attributes:
        path: The file the patches come from.
        slide: The slide.
        coords: Top-left corners in level-0 pixels, (N, 2) as x, y.
        patch_size_px: Side of a patch in pixels.
        patch_size_level0: The same in pixels of level 0.
    """

    barcodes = None
    paths = None
    path: Path
    slide: Slide
    coords: NDArray[np.int64]
    patch_size_px: int
    patch_size_level0: float

    def __len__(self) -> int:
        """Returns the number of patches."""
        return len(self.coords)

    def __getitem__(self, index: int) -> Image.Image:
        """Reads one patch in mode RGB, ``patch_size_px`` on each side."""
        x, y = self.coords[index].tolist()
        side = self.patch_size_level0
        return self.slide.read((x, y), (side, side), (self.patch_size_px, self.patch_size_px))

    def name(self, index: int) -> str:
        """Names one patch for messages, by file, number and level-0 corner."""
        x, y = self.coords[index].tolist()
        return f"{self.path} patch {index} at x={x}, y={y}"

    def close(self) -> None:
        """Closes the slide; the next read opens it again."""
        self.slide.close()
