"""Crops in the workers: one patch → uint8 crops at random places, scales and orientations.

Only what must know the patch happens here, on uint8; colour and blur follow on the device, batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..data.samples import CorruptSample
from .config import CropConfig
from .counter_random import UInt64Array, combine, uniforms

NUM_GLOBAL = 2
# width / height of what is cropped, drawn evenly on a logarithmic scale
_RATIO = (3 / 4, 4 / 3)
_BOX, _ORIENTATION = 0, 1
_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class CropBatch:
    """The crops of one rank at one step; row ``c * B + i`` is crop c of image i.

    Attributes:
        step: The step.
        global_crops: (2·B, 3, G, G) uint8.
        local_crops: (L·B, 3, l, l) uint8.
        sample_keys: Keys of everything random about the images, (B,) int64; they stay on the CPU.
        indices: Samples the images are, over all sources, (B,) int64.
        corrupt: What could not be read.
        images: The whole patches, neither cropped nor turned, (B, 3, S, S) uint8, where they were asked for.
    """

    step: int
    global_crops: Tensor
    local_crops: Tensor
    sample_keys: Tensor
    indices: Tensor
    corrupt: list[CorruptSample] = field(default_factory=list)
    images: Tensor | None = None

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.indices)

    def pin_memory(self) -> CropBatch:
        """Copies the crops to page-locked memory, from where CUDA fetches them while it computes."""
        return replace(
            self,
            global_crops=self.global_crops.pin_memory(),
            local_crops=self.local_crops.pin_memory(),
            images=None if self.images is None else self.images.pin_memory(),
        )

    def to(self, device: torch.device | str, non_blocking: bool = True) -> CropBatch:
        """Copies the crops to a device.

        Returns:
            The batch there; keys and indices stay on the CPU.
        """
        return replace(
            self,
            global_crops=self.global_crops.to(device, non_blocking=non_blocking),
            local_crops=self.local_crops.to(device, non_blocking=non_blocking),
            images=None if self.images is None else self.images.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class CropGeometry:
    """Where a crop lies in its patch, and how it is turned afterwards.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
        horizontal_flip: Whether it is mirrored, first.
        vertical_flip: Whether it is turned upside down, second.
        quarter_turns: By how many times 90° it is turned counter-clockwise, last.
    """

    top: int
    left: int
    height: int
    width: int
    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: int = 0


def crop_keys(sample_keys: NDArray[np.int64] | UInt64Array, num_crops: int) -> UInt64Array:
    """Derives a key for each crop, global ones first, from those of the samples: (B,) → (num_crops, B)."""
    return combine(sample_keys.view(np.uint64)[None], np.arange(num_crops)[:, None])


def draw_geometry(
    keys: UInt64Array, size: tuple[int, int], scale: tuple[float, float], options: CropConfig
) -> list[CropGeometry]:
    """Draws where crops lie in a patch.

    The fraction of the area is drawn evenly, the ratio of the sides evenly on a logarithmic scale. What does not fit is
    drawn again, ten times; then the largest centred box of an allowed ratio is taken, as torchvision does.
    ``keys`` are (n,), ``size`` is height and width of the patch in pixels, ``scale`` the fraction of its area, from and to.
    """
    boxes = uniforms(keys, _BOX, 4 * _ATTEMPTS).reshape(-1, _ATTEMPTS, 4).tolist()
    turns = uniforms(keys, _ORIENTATION, 3).tolist()
    return [
        CropGeometry(
            *_draw_box(attempts, size, scale),
            mirrored < options.horizontal_flip,
            upended < options.vertical_flip,
            int(4 * turned) if options.rotation else 0,
        )
        for attempts, (mirrored, upended, turned) in zip(boxes, turns, strict=True)
    ]


def _draw_box(
    attempts: Sequence[Sequence[float]], size: tuple[int, int], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    patch_height, patch_width = size
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for fraction, shape, down, right in attempts:
        area = patch_height * patch_width * (scale[0] + (scale[1] - scale[0]) * fraction)
        wanted = math.exp(low + (high - low) * shape)
        width, height = round(math.sqrt(area * wanted)), round(math.sqrt(area / wanted))
        if 0 < width <= patch_width and 0 < height <= patch_height:
            top, left = int(down * (patch_height - height + 1)), int(right * (patch_width - width + 1))
            return top, left, height, width
    width = min(patch_width, max(round(patch_height * _RATIO[1]), 1))
    height = min(patch_height, max(round(patch_width / _RATIO[0]), 1))
    return (patch_height - height) // 2, (patch_width - width) // 2, height, width


def cut(image: Tensor, geometry: CropGeometry, size_px: int) -> Tensor:
    """Cuts one crop from a patch, (3, H, W) uint8, resized bicubically with antialiasing to (3, size_px, size_px).

    It is fastest if the channels are last in memory.
    """
    bottom, right = geometry.top + geometry.height, geometry.left + geometry.width
    region = image[None, :, geometry.top : bottom, geometry.left : right]
    # torch's kernel for uint8 with the channels last, which torchvision's v2 resize calls as well
    (crop,) = F.interpolate(region, (size_px, size_px), mode="bicubic", align_corners=False, antialias=True)
    flipped = [
        dimension for dimension, flip in ((2, geometry.horizontal_flip), (1, geometry.vertical_flip)) if flip
    ]
    if flipped:
        crop = crop.flip(flipped)
    return crop.rot90(geometry.quarter_turns, (1, 2)) if geometry.quarter_turns else crop


def whole_patch(image: Image.Image | NDArray[np.uint8], size_px: int) -> Tensor:
    """Resizes a patch as crops are, and leaves it otherwise as it is.

    Args:
        image: RGB image, or (H, W, 3) uint8.
        size_px: Side in px.

    Returns:
        (3, size_px, size_px) uint8.
    """
    pixels = torch.from_numpy(as_pixels(image)).permute(2, 0, 1)
    return cut(pixels, CropGeometry(0, 0, pixels.shape[1], pixels.shape[2]), size_px)


def as_pixels(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gives a sample's pixels as a writable array, (H, W, 3) uint8, which torch wants."""
    return np.require(np.asarray(image), np.uint8, ["C", "W"])


def make_crops(
    images: Iterable[Image.Image | NDArray[np.uint8]], sample_keys: NDArray[np.int64], options: CropConfig
) -> tuple[Tensor, Tensor]:
    """Cuts all crops of a batch.

    Args:
        images: B patches, taken one after the other.
        sample_keys: Their keys, (B,) int64.
        options: Sizes, scales and orientations.

    Returns:
        Global crops, (2·B, 3, G, G) uint8, and local crops, (L·B, 3, l, l) uint8; row ``c * B + i`` is crop c of
        image i.
    """
    num_images = len(sample_keys)
    keys = crop_keys(sample_keys, options.num_crops)
    views = (
        (keys[:NUM_GLOBAL], options.global_size_px, options.global_scale),
        (keys[NUM_GLOBAL:], options.local_size_px, options.local_scale),
    )
    outputs = [
        torch.empty((len(view_keys) * num_images, 3, size_px, size_px), dtype=torch.uint8)
        for view_keys, size_px, _ in views
    ]
    for i, image in enumerate(images):
        pixels = torch.from_numpy(as_pixels(image)).permute(2, 0, 1)
        for output, (view_keys, size_px, scale) in zip(outputs, views, strict=True):
            geometries = draw_geometry(view_keys[:, i], (pixels.shape[1], pixels.shape[2]), scale, options)
            for c, geometry in enumerate(geometries):
                output[c * num_images + i] = cut(pixels, geometry, size_px)
    return outputs[0], outputs[1]
