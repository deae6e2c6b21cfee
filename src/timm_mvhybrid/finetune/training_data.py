"""What the objectives do with their batches, and how targets of many panels become one loss."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.samples import CorruptSample
from ..runtime.ranks import num_ranks
from ..ssl.collectives import sum_over_ranks
from ..training.world import World
from .data import FinetuneData
from .losses import masked_squares


class CohortBatches:
    """What objectives on cohorts share: their batches, and what of these could not be read."""

    config: Any
    world: World
    data: FinetuneData

    def batches(self, start_pass: int) -> Generator[Any, None, None]:
        """Yields crops, whole patches and targets."""
        config, world = self.config, self.world
        return self.data.batches(
            crops=config.crops,
            batch_size=config.images_per_pass(world.world_size),
            num_steps=config.num_steps * config.parallel.accumulate,
            seed=config.seed,
            start_step=start_pass,
            rank=world.rank,
            world_size=world.world_size,
            pin_memory=world.device.type == "cuda",
        )

    def unreadable(self, batch: Any) -> Sequence[CorruptSample]:
        """Lists the patches that were replaced."""
        found: Sequence[CorruptSample] = batch["corrupt"]
        return found


def targets_of(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Moves the targets of a batch to a device.

    Args:
        batch: See :mod:`~timm_mvhybrid.finetune.data`.
        device: Where to.

    Returns:
        The same by the same names.
    """
    kinds = ("expression/", "measured/", "token_expression/", "token_measured/", "pathways")
    return {
        name: value.to(device, non_blocking=True) for name, value in batch.items() if name.startswith(kinds)
    }


def normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Turns uint8 images, or float ones from 0 to 1, into what a network sees.

    Args:
        image: (B, 3, H, W).
        mean: Of the network's channels.
        std: Likewise.
        device: Where to.

    Returns:
        float32, of the same shape.
    """
    x = image.to(device, non_blocking=True)
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    shift, scale = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    return (x - shift) / scale


def panel_loss(
    predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], statistics: Any, prefix: str = ""
) -> Tensor:
    """Averages, over the panels of which something was measured, the masked error of the batch of all processes.

    Each process returns its part times their number, so that the mean over processes, of losses as of gradients, is what
    one process would compute of the whole batch. Panels without targets, and batches, add 0.

    Args:
        predictions: Panel → (..., genes).
        targets: ``<prefix>expression/<panel>`` and ``<prefix>measured/<panel>``, where there are any.
        statistics: A function of the panel's name, its mean and deviation, (genes,) each.
        prefix: "" for patches, "token_" for cells.

    Returns:
        A scalar.
    """
    sums, numbers = [], []
    for name, prediction in predictions.items():
        target = targets.get(f"{prefix}expression/{name}")
        measured = targets.get(f"{prefix}measured/{name}")
        if target is None or measured is None:
            target = torch.zeros_like(prediction)
            measured = torch.zeros_like(prediction, dtype=torch.bool)
        squares, number = masked_squares(prediction, target, measured, *statistics(name))
        sums.append(squares)
        numbers.append(number)
    total = sum_over_ranks(torch.stack(numbers))
    means = torch.stack(sums) * num_ranks() / total.clamp(min=1)
    return means.sum() / (total > 0).sum().clamp(min=1)
