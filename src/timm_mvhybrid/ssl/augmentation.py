"""Colour, stain, blur and normalisation on the device, batched: uint8 crops → what the networks see.

For comparison there is the whole augmentation by Pillow in the workers, image by image, as DINOv2's reference does it.
Geometry, colours and blur are those of the fast path, drawn from the same keys. What differs is that Pillow rounds to 8
bits between any two operations, and that it is slow.

Stains: stain jitter: an image's haematoxylin, eosin and residue, each made stronger or weaker.
Source: Tellez et al., IEEE Transactions on Medical Imaging 37 (2018), "Whole-slide mitosis detection in H&E breast
histology using PHH3 as a reference": each stain's amount c becomes α · c + β with α from 1 − σ to 1 + σ and β from −σ to
σ. The amounts are natural optical densities, −ln(intensity), unmixed by the stain vectors of Ruifrok and Johnston,
Analytical and Quantitative Cytology and Histology 23 (2001).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..runtime.errors import PretrainError
from ..training.settings import require_choice
from .config import CropConfig
from .crops import NUM_GLOBAL, CropBatch, CropGeometry, crop_keys, draw_geometry
from .photometric import (
    COLOUR_OPERATIONS,
    PhotometricOptions,
    PhotometricParameters,
    draw_parameters,
    gaussian_blur,
    grayscale,
)

_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density of red, green, blue for a unit of haematoxylin, eosin, residue."""

_DARKEST = 1 / 255


def jitter_stains(images: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    """Changes the amounts of the stains.

    Unmixing, change and mixing are linear in the optical density, so they are one 3 × 3 matrix and one shift an image.

    Args:
        images: (n, 3, H, W), 0 to 1.
        scales: α of haematoxylin, eosin and residue, (n, 3).
        shifts: β of the same, (n, 3), in natural optical density.

    Returns:
        (n, 3, H, W), 0 to 1; with scales 1 and shifts 0 the image, but for values below 1 / 255.
    """
    mixing = np.array(_STAINS)
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    # on the CPU in float64: these are 12 numbers an image, and TensorFloat-32 would show
    scales64, shifts64 = scales.detach().cpu().double(), shifts.detach().cpu().double()
    mix = torch.from_numpy(mixing)
    matrices = (torch.linalg.inv(mix) @ (scales64[:, :, None] * mix)).to(images)
    offsets = (shifts64 @ mix).to(images)
    density = images.clamp(min=_DARKEST).log_().neg_()
    output = torch.empty_like(images)
    for channel in range(3):
        column = matrices[:, :, channel, None, None]
        total = density[:, 0] * column[:, 0] + offsets[:, channel, None, None]
        for source in (1, 2):
            total.addcmul_(density[:, source], column[:, source])
        torch.exp(total.neg_(), out=output[:, channel])
    return output.clamp_(0, 1)


_COLOUR_OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def make_pil_crops(
    images: Iterable[Image.Image | NDArray[np.uint8]],
    sample_keys: NDArray[np.int64],
    options: CropConfig,
    photometric: PhotometricOptions,
) -> tuple[Tensor, Tensor]:
    """Cuts and augments all crops of a batch; only normalisation is left to do.

    Arguments and results as for :func:`~.crops.make_crops`.
    """
    num_images = len(sample_keys)
    keys = crop_keys(sample_keys, options.num_crops)
    parameters = draw_parameters(keys, photometric)
    sides = [
        options.global_size_px if c < NUM_GLOBAL else options.local_size_px for c in range(options.num_crops)
    ]
    outputs = [torch.empty((num_images, 3, side, side), dtype=torch.uint8) for side in sides]
    for i, image in enumerate(images):
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        size = (picture.height, picture.width)
        geometries = [
            *draw_geometry(keys[:NUM_GLOBAL, i], size, options.global_scale, options),
            *draw_geometry(keys[NUM_GLOBAL:, i], size, options.local_scale, options),
        ]
        for c, geometry in enumerate(geometries):
            crop = _cut(picture, geometry, sides[c])
            crop = _augment(crop, parameters, c * num_images + i, photometric.blur_kernel_size)
            outputs[c][i] = F.pil_to_tensor(crop)
    local_size = (0, 3, options.local_size_px, options.local_size_px)
    empty = torch.empty(local_size, dtype=torch.uint8)
    return torch.cat(outputs[:NUM_GLOBAL]), torch.cat([*outputs[NUM_GLOBAL:], empty])


def _cut(picture: Image.Image, geometry: CropGeometry, side: int) -> Image.Image:
    crop = F.resized_crop(
        picture,
        geometry.top,
        geometry.left,
        geometry.height,
        geometry.width,
        [side, side],
        InterpolationMode.BICUBIC,
    )
    if geometry.horizontal_flip:
        crop = F.horizontal_flip(crop)
    if geometry.vertical_flip:
        crop = F.vertical_flip(crop)
    return F.rotate(crop, 90 * geometry.quarter_turns) if geometry.quarter_turns else crop


def _augment(
    crop: Image.Image, parameters: PhotometricParameters, row: int, blur_kernel_size: int
) -> Image.Image:
    scales, shifts = parameters.stain_scales[row : row + 1], parameters.stain_shifts[row : row + 1]
    if (scales != 1).any() or (shifts != 0).any():
        pixels = F.pil_to_tensor(crop)[None].float() / 255
        stained = jitter_stains(pixels, torch.from_numpy(scales), torch.from_numpy(shifts))[0]
        crop = F.to_pil_image((stained * 255).round().to(torch.uint8))
    if parameters.jitter[row]:
        for number in parameters.order[row]:
            crop = _COLOUR_OPERATIONS[number](crop, float(parameters.amounts[row, number]))
    if parameters.grayscale[row]:
        crop = F.rgb_to_grayscale(crop, num_output_channels=3)
    if parameters.blur[row]:
        crop = F.gaussian_blur(crop, [blur_kernel_size] * 2, [float(parameters.sigma[row])] * 2)
    return crop


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
        require_choice("recipe", recipe, Recipe)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise PretrainError(
                f"`mean` and `std` need three numbers, `std` above 0, not {list(mean)} and {list(std)}"
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
    """Changes stains, colours and sharpness of images (n, 3, H, W), float32, 0 to 1, in place.

    ``which`` are their places in the parameters, (n,), which may be those of others, too.
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
