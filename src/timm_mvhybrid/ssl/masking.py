"""Which patches of the global crops the student does not see: (seed, step, crop) → masks, without any state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.errors import PretrainError

# DINOv2's blocks: smallest area in patches, largest elongation, tries for one block
_MIN_BLOCK = 4
_MAX_LOG_ASPECT = math.log(1 / 0.3)
_NUM_TRIES = 10


def masks_of_step(
    grid: tuple[int, int],
    *,
    positions: Sequence[int],
    num_images: int,
    share: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    """Draws the masks of some images of a step, the same whichever process asks for them.

    Of the step's 2 · ``num_images`` global crops, ``int(share · 2 · num_images)`` are masked. The range of ratios is
    cut into as many equal parts, and each masked crop draws its number of hidden patches from a part of its own; which
    crop has which part, if any, is shuffled. Rectangles of 4 patches or more (fewer where fewer are left to hide) with
    sides in a ratio of 0.3 to 3.3 are laid, one over the other, until the number is reached or none was found to fit in
    10 tries; so a crop may hide fewer, never more.

    Source: BEiT (arXiv 2106.08254), algorithm 1, as DINOv2's code uses it, which shuffles within a process. Drawn by
    generators of (seed, step, crop) alone, where ``lightly.models.utils.random_block_mask`` draws from Python's global
    one and fails on small grids.

    Returns:
        True where a patch is hidden, bool, (2 · positions, rows · columns), crop by crop, on the CPU.

    Raises:
        PretrainError: A size or a fraction is out of its range.
    """
    rows, columns = grid
    low, high = ratio
    if num_images < 1 or rows < 1 or columns < 1:
        raise PretrainError(
            f"cannot mask {num_images} images of {rows} × {columns} patches; all must be at least 1"
        )
    if not (0 <= share <= 1 and 0 <= low <= high <= 1):
        raise PretrainError(
            f"mask share is {share} and ratio {ratio}; they must lie between 0 and 1, ratio rising"
        )
    num_crops = 2 * num_images
    num_masked = int(num_crops * share)
    bounds = np.linspace(low, high, num_masked + 1)
    slots = np.random.default_rng([seed, step]).permutation(num_crops)
    crops = [crop * num_images + position for crop in range(2) for position in positions]
    masks = np.zeros((len(crops), rows, columns), dtype=bool)
    for mask, crop in zip(masks, crops, strict=True):
        slot = slots[crop]
        if slot < num_masked:
            # from 1, because a seed's trailing zeros do not count
            random = np.random.default_rng([seed, step, crop + 1])
            wanted = int(rows * columns * random.uniform(bounds[slot], bounds[slot + 1]))
            _lay_blocks(mask, wanted, random)
    return torch.from_numpy(masks).flatten(1)


def _lay_blocks(mask: NDArray[np.bool_], wanted: int, random: np.random.Generator) -> None:
    """Hides ``wanted`` patches of a mask, or as many as blocks are found for."""
    left = wanted
    while left > 0:
        hidden = _lay_block(mask, left, random)
        if hidden == 0:
            return
        left -= hidden


def _lay_block(mask: NDArray[np.bool_], left: int, random: np.random.Generator) -> int:
    """Hides one more rectangle; returns how many patches it newly hides, at most ``left``."""
    rows, columns = mask.shape
    for _ in range(_NUM_TRIES):
        area = random.uniform(min(_MIN_BLOCK, left), left)
        aspect = math.exp(random.uniform(-_MAX_LOG_ASPECT, _MAX_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        # no rectangle spans the image, unless the image is a single row or column
        if not (1 <= height < max(rows, 2) and 1 <= width < max(columns, 2)):
            continue
        top, start = random.integers(rows - height + 1), random.integers(columns - width + 1)
        block = mask[top : top + height, start : start + width]
        hidden = height * width - int(block.sum())
        if 0 < hidden <= left:
            block[:] = True
            return hidden
    return 0


@dataclass(frozen=True, kw_only=True)
class MaskedPatches:
    """A mask and what follows from it.

    A plain object, so that FSDP leaves it alone.

    Attributes:
        mask: (images, patches), bool.
        positions: Places of its True entries in the flattened mask, (M,), int64.
        row_weights: 1 / (hidden patches of the entry's image · images), (M,), float64.
    """

    mask: Tensor
    positions: Tensor
    row_weights: Tensor

    @classmethod
    def of(cls, mask: Tensor, device: torch.device) -> MaskedPatches:
        """Looks up a mask's entries where it lies and moves them.

        Args:
            mask: (images, patches), bool; on the CPU it costs no synchronisation with a GPU.
            device: Where they are needed.
        """
        counts = mask.sum(dim=1, keepdim=True).clamp(min=1)
        # rounded where lightly rounds, so that its loss is the same to the last digits
        weights = (1.0 / counts).double().div(max(len(mask), 1)).expand(mask.shape)[mask]
        positions = mask.flatten().nonzero().flatten()
        moved = (x.to(device, non_blocking=True) for x in (mask, positions, weights))
        return cls(**dict(zip(("mask", "positions", "row_weights"), moved, strict=True)))

    def select(self, patches: Tensor) -> Tensor:
        """Picks the hidden patches.

        Args:
            patches: (images, patches, width).

        Returns:
            (M, width), in the order of the mask.
        """
        return patches.flatten(0, 1).index_select(0, self.positions)
