"""Colour and blur of a batch of images, each by parameters of its own.

Images are (n, 3, H, W), 0 to 1, factors and shifts (n,). The formulas are those of torchvision's functions on float
images. Every operation is elementwise or reduces one image by itself, so that an image's result does not depend on the
batch it comes in.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
