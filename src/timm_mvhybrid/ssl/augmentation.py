"""Colour, blur and normalisation on the device, batched: uint8 crops → what the networks see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.errors import PretrainError
from .colour import COLOUR_OPERATIONS, gaussian_blur, grayscale
from .crops import NUM_GLOBAL, CropBatch, crop_keys
from .photometric import PhotometricOptions, PhotometricParameters, draw_parameters
from .stain import jitter_stains

Recipe = Literal["paper", "paper_pil"]

# at a time, so that temporaries stay small beside the model's activations
_CHUNK_PIXELS = 1 << 25


class DeviceAugmentation:
    """Turns a batch of uint8 crops into normalised images, each crop by parameters of its own.

    The parameters derive from the batch's keys, on the CPU, so they do not depend on device, worker or rank; the pixels
    of a crop do not depend on its batch. Nothing waits for the device.

    Args:
        recipe: "paper" changes colours and blurs here; "paper_pil" only normalises, because the workers did the rest.
        mean: Of the channels red, green, blue, for values from 0 to 1.
        std: Likewise.
        options: Probabilities and strengths; the paper's by default.

    Raises:
        PretrainError: If the recipe is unknown, or a mean or standard deviation is unusable.
    """

    def __init__(
        self,
        recipe: Recipe = "paper",
        *,
        mean: Sequence[float],
        std: Sequence[float],
        options: PhotometricOptions | None = None,
    ) -> None:
        if recipe not in ("paper", "paper_pil"):
            raise PretrainError(f"the augmentation must be 'paper' or 'paper_pil', not {recipe!r}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise PretrainError(
                f"mean and std need three numbers, std above 0, not {list(mean)} and {list(std)}"
            )
        self.recipe = recipe
        self.options = options or PhotometricOptions()
        self._mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self._std = torch.tensor(std, dtype=torch.float32)[:, None, None]

    @torch.no_grad()
    def __call__(self, batch: CropBatch) -> tuple[Tensor, Tensor]:
        """Augments a batch on the device where its crops are.

        Returns:
            Global crops (2·B, 3, G, G) and local crops (L·B, 3, l, l), float32, normalised.
        """
        self._mean, self._std = (x.to(batch.global_crops.device) for x in (self._mean, self._std))
        num_images = len(batch)
        num_crops = NUM_GLOBAL + len(batch.local_crops) // max(num_images, 1)
        keys = crop_keys(batch.sample_keys.numpy(), num_crops)
        return (
            self._augment(batch.global_crops, draw_parameters(keys[:NUM_GLOBAL], self.options)),
            self._augment(batch.local_crops, draw_parameters(keys[NUM_GLOBAL:], self.options, NUM_GLOBAL)),
        )

    def _augment(self, crops: Tensor, parameters: PhotometricParameters) -> Tensor:
        images = crops.float().div_(255)
        size = max(_CHUNK_PIXELS // max(images[:1].numel(), 1), 1)
        for start in range(0, len(images), size):
            chunk = slice(start, start + size)
            if self.recipe == "paper":
                augment(
                    images[chunk], parameters, self.options.blur_kernel_size, np.arange(len(images))[chunk]
                )
        return images.sub_(self._mean).div_(self._std)


def augment(
    images: Tensor, parameters: PhotometricParameters, blur_kernel_size: int, which: NDArray[np.int64]
) -> None:
    """Changes stains, colours and sharpness of images, in place.

    Args:
        images: (n, 3, H, W) float32, 0 to 1.
        parameters: What happens, of these images and maybe others.
        blur_kernel_size: Pixels that a blur reaches over, odd.
        which: The images' places in the parameters, (n,).
    """
    device = images.device

    def tensor(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values[which]).to(device, torch.float32, non_blocking=True)

    def rows(chosen: NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(np.flatnonzero(chosen)).to(device, non_blocking=True)

    if (parameters.stain_scales != 1).any() or (parameters.stain_shifts != 0).any():
        scales, shifts = parameters.stain_scales[which], parameters.stain_shifts[which]
        images.copy_(jitter_stains(images, torch.from_numpy(scales), torch.from_numpy(shifts)))
    amounts = tensor(parameters.amounts)
    jitter, order = parameters.jitter[which], parameters.order[which]
    for place in range(len(COLOUR_OPERATIONS)):
        for number, operation in enumerate(COLOUR_OPERATIONS):
            chosen = jitter & (order[:, place] == number)
            if chosen.any():
                index = rows(chosen)
                changed = operation(images.index_select(0, index), amounts[index, number])
                images.index_copy_(0, index, changed)
    if parameters.grayscale[which].any():
        index = rows(parameters.grayscale[which])
        images.index_copy_(0, index, grayscale(images.index_select(0, index)).expand(-1, 3, -1, -1))
    if parameters.blur[which].any():
        index = rows(parameters.blur[which])
        blurred = gaussian_blur(
            images.index_select(0, index), tensor(parameters.sigma)[index], blur_kernel_size
        )
        images.index_copy_(0, index, blurred)
