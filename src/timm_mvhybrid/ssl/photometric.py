"""What colour and blur do to each crop: keys → parameters, the same for the device's and Pillow's path.

A batch of images is coloured and blurred each by parameters of its own.
Images are (n, 3, H, W), 0 to 1, factors and shifts (n,). The formulas are those of torchvision's functions on float
images. Every operation is elementwise or reduces one image by itself, so that an image's result does not depend on the
batch it comes in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..training.settings import require, require_share
from .counter_random import UInt64Array, uniforms
from .crops import NUM_GLOBAL

# ITU-R BT.601, rounded as torchvision does
_LUMA = (0.2989, 0.587, 0.114)


def grayscale(images: Tensor) -> Tensor:
    """Weighs the channels into one, (n, 1, H, W)."""
    red, green, blue = _LUMA
    return (images[:, 0:1] * red).add_(images[:, 1:2], alpha=green).add_(images[:, 2:3], alpha=blue)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiplies images; a factor of 0 gives black, 1 the image."""
    return (images * factors[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blends images with their mean grey; a factor of 0 gives grey, 1 the image."""
    # row by row, because a single sum over an image may be split among threads, by the size of the batch
    means = grayscale(images).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    return _blend(images, means, factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blends images with their grayscale; a factor of 0 gives grayscale, 1 the image."""
    return _blend(images, grayscale(images), factors)


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    factors = factors[:, None, None, None]
    return (images * factors).add_(others * (1 - factors)).clamp_(0, 1)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turns the hue of images, saturation and value kept (HSV).

    Source: Smith, SIGGRAPH 1978, "Color gamut transform pairs", in the branchless form channel = value − chroma ·
    max(0, min(k, 4 − k, 1)) with k = (n + 6 · hue) mod 6 and n = 5, 3, 1 for red, green, blue.
    Shifts are in turns, −0.5 to 0.5.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    # grey has no hue; any will do, because its chroma is 0
    inverse = 1 / torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(
        value == red,
        (green - blue) * inverse,
        torch.where(value == green, (blue - red) * inverse + 2, (red - green) * inverse + 4),
    )
    sextant += 6 * shifts[:, None, None]
    output = torch.empty_like(images)
    for channel, number in enumerate((5, 3, 1)):
        k = torch.remainder(sextant + number, 6)
        torch.sub(value, chroma * torch.minimum(k, 4 - k).clamp_(0, 1), out=output[:, channel])
    return output


COLOUR_OPERATIONS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
"""The parts of a colour jitter, in torchvision's numbering."""


def gaussian_blur(images: Tensor, sigmas: Tensor, kernel_size: int) -> Tensor:
    """Blurs images by a Gaussian that ends at the kernel's edge; the images are continued by reflection.

    Standard deviations, ``sigmas``, are in pixels, (n,); ``kernel_size`` is an odd number of pixels.
    """
    reach = kernel_size // 2
    distances = torch.arange(reach + 1, dtype=torch.float32, device=images.device)
    weights = torch.exp(-0.5 * (distances / sigmas[:, None]) ** 2)
    weights = weights / (weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdim=True))
    for dimension in (3, 2):
        images = _blur_along(images, weights.to(images.dtype), dimension)
    return images


def _blur_along(images: Tensor, weights: Tensor, dimension: int) -> Tensor:
    reach, length = weights.shape[1] - 1, images.shape[dimension]
    padded = images.index_select(dimension, _reflected(length, reach, images.device))
    columns = weights[:, :, None, None, None].unbind(1)
    output = padded.narrow(dimension, reach, length) * columns[0]
    for distance in range(1, reach + 1):
        before = padded.narrow(dimension, reach - distance, length)
        after = padded.narrow(dimension, reach + distance, length)
        output.addcmul_(before + after, columns[distance])
    return output


def _reflected(length: int, reach: int, device: torch.device) -> Tensor:
    """Indices −reach … length + reach − 1, mirrored at the first and last pixel; also for images smaller than that."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-reach, length + reach, device=device).remainder(period)
    return torch.minimum(index, (period - index).abs()) if length > 1 else torch.zeros_like(index)


_JITTER, _ORDER, _GRAYSCALE, _BLUR, _STAIN = range(2, 7)


@dataclass(frozen=True, kw_only=True)
class PhotometricOptions:
    """Colour and blur; the defaults are the paper's.

    DINOv2 names its blurs "p = 1.0, 0.1, 0.5", but what it hands to torchvision is 1 − p; the published models saw the
    probabilities below. The paper leaves DINOv2's solarisation out.

    Attributes:
        jitter_probability: Probability that brightness, contrast, saturation and hue change, in random order.
        brightness: Largest relative change.
        contrast: Largest relative change.
        saturation: Largest relative change.
        hue: Largest change, in turns.
        grayscale_probability: Probability that the colour is lost.
        blur_probabilities: Of the first global crop, the second, and each local crop.
        blur_sigma: Standard deviation of the blur in px, from and to.
        blur_kernel_size: Pixels that a blur reaches over, odd.
        hed_jitter: σ of the stain jitter; 0 for none.

    Raises:
        PretrainError: If a value is outside its range.
    """

    jitter_probability: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_probability: float = 0.2
    blur_probabilities: tuple[float, float, float] = (0.0, 0.9, 0.5)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel_size: int = 9
    hed_jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter_probability", "grayscale_probability"):
            require_share(name, getattr(self, name))
        for value in self.blur_probabilities:
            require_share("blur_probabilities", value)
        for name in ("brightness", "contrast", "saturation", "hed_jitter"):
            require_share(name, getattr(self, name))
        require(0 <= self.hue <= 0.5, "hue", self.hue, "between 0 and 0.5")
        low, high = self.blur_sigma
        require(0 < low <= high, "blur_sigma", self.blur_sigma, "two rising numbers above 0")
        size = self.blur_kernel_size
        require(size >= 1 and size % 2 == 1, "blur_kernel_size", size, "odd")


@dataclass(frozen=True, kw_only=True)
class PhotometricParameters:
    """What happens to n crops, in this order: stains, colours, grayscale, blur.

    Attributes:
        stain_scales: α of haematoxylin, eosin and residue, (n, 3).
        stain_shifts: β of the same, (n, 3).
        jitter: Whether the colours change, (n,).
        order: Which of brightness, contrast, saturation and hue (0 to 3) comes first, second, …, (n, 4).
        amounts: Factors of brightness, contrast and saturation, and the shift of hue, (n, 4).
        grayscale: Whether the colour is lost, (n,).
        blur: Whether it is blurred, (n,).
        sigma: Standard deviation of the blur in px, (n,).
    """

    stain_scales: NDArray[np.float64]
    stain_shifts: NDArray[np.float64]
    jitter: NDArray[np.bool_]
    order: NDArray[np.int64]
    amounts: NDArray[np.float64]
    grayscale: NDArray[np.bool_]
    blur: NDArray[np.bool_]
    sigma: NDArray[np.float64]


def draw_parameters(
    keys: UInt64Array, options: PhotometricOptions, first_crop: int = 0
) -> PhotometricParameters:
    """Draws what happens to crops.

    Args:
        keys: What ``crop_keys`` made, (crops, B).
        options: Probabilities and strengths.
        first_crop: Number of the first row's crop; 0 and 1 are the global crops.
    """
    crops = np.arange(first_crop, first_crop + len(keys))
    blur_probability = np.array(options.blur_probabilities)[np.minimum(crops, NUM_GLOBAL)]
    flat = keys.reshape(-1)
    stains = 2 * uniforms(flat, _STAIN, 6) - 1
    jitter = uniforms(flat, _JITTER, 5)
    ranges = np.array([options.brightness, options.contrast, options.saturation, options.hue])
    blur = uniforms(flat, _BLUR, 2)
    low, high = options.blur_sigma
    return PhotometricParameters(
        stain_scales=1 + options.hed_jitter * stains[:, :3],
        stain_shifts=options.hed_jitter * stains[:, 3:],
        jitter=jitter[:, 0] < options.jitter_probability,
        # four numbers are sorted in each of their 24 orders equally often
        order=uniforms(flat, _ORDER, 4).argsort(axis=1),
        amounts=np.array([1.0, 1.0, 1.0, 0.0]) + ranges * (2 * jitter[:, 1:] - 1),
        grayscale=uniforms(flat, _GRAYSCALE, 1)[:, 0] < options.grayscale_probability,
        blur=blur[:, 0] < np.repeat(blur_probability, keys.shape[1]),
        sigma=low + (high - low) * blur[:, 1],
    )
