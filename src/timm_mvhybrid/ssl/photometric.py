"""What colour and blur do to each crop: keys → parameters, the same for the device's and Pillow's path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import PretrainError
from .counter_random import UInt64Array, uniforms
from .crops import NUM_GLOBAL

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
        for value in (self.jitter_probability, self.grayscale_probability, *self.blur_probabilities):
            if not 0 <= value <= 1:
                raise PretrainError(f"probabilities of colour and blur must lie between 0 and 1, not {value}")
        for name, highest in (
            ("brightness", 1.0),
            ("contrast", 1.0),
            ("saturation", 1.0),
            ("hue", 0.5),
            ("hed_jitter", 1.0),
        ):
            if not 0 <= getattr(self, name) <= highest:
                raise PretrainError(f"{name} must lie between 0 and {highest}, not {getattr(self, name)}")
        low, high = self.blur_sigma
        if not 0 < low <= high:
            raise PretrainError(f"blur_sigma must be two rising numbers above 0, not {self.blur_sigma}")
        if self.blur_kernel_size < 1 or self.blur_kernel_size % 2 == 0:
            raise PretrainError(f"blur_kernel_size must be odd, not {self.blur_kernel_size}")


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
