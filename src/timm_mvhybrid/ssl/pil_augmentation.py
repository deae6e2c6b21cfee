"""The whole augmentation by Pillow in the workers, image by image, as DINOv2's reference does it; for comparison.

Geometry, colours and blur are those of the fast path, drawn from the same keys. What differs is that Pillow rounds to 8
bits between any two operations, and that it is slow.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .config import CropConfig
from .crops import NUM_GLOBAL, CropGeometry, crop_keys, draw_geometry
from .photometric import PhotometricOptions, PhotometricParameters, draw_parameters
from .stain import jitter_stains

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
