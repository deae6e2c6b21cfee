"""Patch source → uint8 batches of one size, read by worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data import PatchError, PatchSource
from ..data.fitting import fit_image
from ..runtime.cores import num_loader_workers, num_usable_cores


@dataclass(frozen=True, kw_only=True)
class PatchBatch:
    """One batch, as a worker returns it.

    Attributes:
        indices: The patches that could be read.
        images: Their pixels, (B, 3, H, W) uint8; B is 0 if none could be read.
        errors: Index and one-line message of each patch that could not.
    """

    indices: list[int]
    images: torch.Tensor
    errors: list[tuple[int, str]]

    def pin_memory(self) -> PatchBatch:
        """Returns the batch with its pixels in page-locked memory, for the loader's ``pin_memory``."""
        return PatchBatch(indices=self.indices, images=self.images.pin_memory(), errors=self.errors)


class _Patches(Dataset[tuple[int, "np.ndarray | str"]]):
    """Reads patches; one that cannot be read becomes its message, because exceptions lose theirs between processes."""

    def __init__(self, source: PatchSource, size: tuple[int, int]) -> None:
        self.source = source
        self.size = size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | str]:
        try:
            return index, fit_image(self.source[index], self.size)
        except PatchError as error:
            return index, " ".join(str(error).split())

    def collate(self, items: list[tuple[int, np.ndarray | str]]) -> PatchBatch:
        """Stacks what could be read."""
        images = [(index, image) for index, image in items if isinstance(image, np.ndarray)]
        height, width = self.size
        stacked = (
            np.stack([image for _, image in images]) if images else np.empty((0, height, width, 3), np.uint8)
        )
        return PatchBatch(
            indices=[index for index, _ in images],
            images=torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))),
            errors=[(index, image) for index, image in items if isinstance(image, str)],
        )


def num_available_workers() -> int:
    """Counts the processes worth starting to read patches.

    Returns:
        One per core that this process may use, at most 8.
    """
    return min(num_usable_cores(), 8)


def patch_loader(
    source: PatchSource, size: tuple[int, int], *, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader[PatchBatch]:
    """Makes a loader of a source in order, at (height, width) px, the same for any number of workers."""
    patches = _Patches(source, size)
    # what a loader yields is what its collate function makes, not what its dataset holds
    loader: DataLoader[Any] = DataLoader(
        patches,
        batch_size=batch_size,
        num_workers=num_loader_workers(num_workers, -(-len(patches) // batch_size)),
        collate_fn=patches.collate,
        pin_memory=pin_memory,
    )
    return loader
