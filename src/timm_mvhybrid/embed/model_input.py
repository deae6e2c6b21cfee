"""Patches + model → the device it runs on, the size at which patches enter, and uint8 batches of it, read by workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from timm.data.config import resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data import PatchSource
from ..runtime.cores import num_loader_workers, num_usable_cores
from ..runtime.device import DeviceError, find_device
from ..runtime.errors import EvaluationError
from .patch_reading import read_patch


def choose_input_size(
    model: nn.Module, patch_size_px: int | None, input_size: int | Literal["auto"]
) -> tuple[int, int]:
    """Decides at which size patches enter a model.

    Args:
        model: Any timm model.
        patch_size_px: Side of the patches in pixels; None where they differ (images of a folder).
        input_size: Wanted side in pixels, or ``auto``: the patches' own where the model takes it, otherwise the size
            the model was made for.

    Raises:
        EvaluationError: If the model does not take the wanted size.
    """
    configured = resolve_data_config({}, model=model)["input_size"]
    default = (int(configured[1]), int(configured[2]))
    if input_size == "auto":
        wanted = patch_size_px
        return (wanted, wanted) if wanted is not None and _takes_size(model, wanted, default) else default
    if not _takes_size(model, input_size, default):
        raise EvaluationError(
            f"the model does not take inputs of {input_size} px; it was made for {default[0]} px (`input_size='auto'`)"
        )
    return (input_size, input_size)


def _takes_size(model: nn.Module, size: int, default: tuple[int, int]) -> bool:
    if (size, size) == default:
        return True
    if size < 1:
        return False
    embed_layer: Any = getattr(model, "patch_embed", None)
    if hasattr(embed_layer, "strict_img_size"):
        flexible = getattr(model, "dynamic_img_size", False) or not embed_layer.strict_img_size
        multiple = all(size % side == 0 for side in embed_layer.patch_size)
        return bool(flexible and (multiple or getattr(embed_layer, "dynamic_img_pad", False)))
    return not (getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size", False)


def choose_device(name: str) -> torch.device:
    """Turns a device's name into a device that exists.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` is the first CUDA device, otherwise the CPU.

    Raises:
        EvaluationError: If the name is unknown or the device cannot compute here.
    """
    try:
        return find_device(name)
    except DeviceError as error:
        raise EvaluationError(str(error)) from error


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
        return index, read_patch(self.source, index, self.size)

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


class PatchLoader:
    """Reads a source in order, in batches of patches of one size, the same for any number of workers.

    Args:
        source: The patches.
        size: Height and width in px at which they are wanted.
        batch_size: Patches per batch.
        num_workers: Processes that read; 0 reads in this one.
        pin_memory: Whether pixels are put into page-locked memory.

    Attributes:
        seconds_waited: How long whoever takes the batches has waited for them.
    """

    def __init__(
        self,
        source: PatchSource,
        size: tuple[int, int],
        *,
        batch_size: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        patches = _Patches(source, size)
        # what a loader yields is what its collate function makes, not what its dataset holds
        self.loader: DataLoader[Any] = DataLoader(
            patches,
            batch_size=batch_size,
            num_workers=num_loader_workers(num_workers, -(-len(patches) // batch_size)),
            collate_fn=patches.collate,
            pin_memory=pin_memory,
        )
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[PatchBatch]:
        """Yields the batches."""
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch
