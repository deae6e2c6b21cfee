"""Patches, read one after the other → the dataset of pixels in a patch h5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import h5py
import numpy as np


class Patches(Protocol):
    """Patches of one size: an array (N, H, W, 3) uint8, or what reads images by their number."""

    def __len__(self) -> int:
        """Returns the number of patches."""

    def __getitem__(self, index: int) -> Any:
        """Reads one, in mode RGB or (H, W, 3) uint8."""


_WRITE_PATCHES = 64


def write_images(
    file: h5py.File,
    patches: Patches,
    size_px: tuple[int, int],
    *,
    compression: str | None = None,
    check: Callable[[], None] | None = None,
    on_patches: Callable[[int, int], None] | None = None,
) -> h5py.Dataset:
    """Writes patches as ``img`` (N, H, W, 3) uint8, a few at a time, so that any number fits in memory.

    One patch per chunk: any patch is read by itself.

    Args:
        file: The open file.
        patches: The patches.
        size_px: Height and width of each.
        compression: Of the pixels, as h5py names it.
        check: Called after each few patches; raises what the disk refused, see ``H5Output.check``.
        on_patches: Called after each few patches with the number done and the total.

    Returns:
        The dataset, for its attributes.
    """
    shape = (*size_px, 3)
    images = file.create_dataset(
        "img", shape=(len(patches), *shape), dtype=np.uint8, chunks=(1, *shape), compression=compression
    )
    for start in range(0, len(patches), _WRITE_PATCHES):
        stop = min(start + _WRITE_PATCHES, len(patches))
        images[start:stop] = np.stack([np.asarray(patches[index]) for index in range(start, stop)])
        if check is not None:
            check()
        if on_patches is not None:
            on_patches(stop, len(patches))
    return images
