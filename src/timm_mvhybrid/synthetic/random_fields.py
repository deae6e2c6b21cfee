"""Noise with a structure: generator + scale → smooth fields, grain and fibres on a pixel grid."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.extras import require

Map = NDArray[np.float32]

_FIBRE_DIRECTIONS = 8


def resize(field: Map, shape: tuple[int, int]) -> Map:
    """Interpolates a map to another grid, of a height and a width, over the same area."""
    resized = Image.fromarray(field).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32)


def smooth_field(shape: tuple[int, int], scale_px: float, generator: np.random.Generator) -> Map:
    """Draws a smooth random field, (H, W) float32, with a Gaussian kernel whose standard deviation is ``scale_px``.

    Each value is standard normal over repeated draws; one draw keeps a mean of its own, as one slide does.
    """
    gaussian_filter = require("scipy.ndimage").gaussian_filter

    step = max(scale_px / 4, 1.0)
    sigma = scale_px / step
    margin = math.ceil(4 * sigma)
    coarse = tuple(math.ceil(side / step) + 1 for side in shape)
    noise = generator.standard_normal([side + 2 * margin for side in coarse], dtype=np.float32)
    # a normalised Gaussian kernel leaves white noise the deviation 1 / (2 sigma sqrt(pi))
    filtered = gaussian_filter(noise, sigma)[margin:-margin, margin:-margin] * (
        2 * sigma * math.sqrt(math.pi)
    )
    return resize(np.ascontiguousarray(filtered), shape)


def grain(shape: tuple[int, int], fine_px: float, coarse_px: float, generator: np.random.Generator) -> Map:
    """Draws noise within a band of spatial frequencies, (H, W) float32 with deviation 1.

    Averages over more than the band vanish. Of the two Gaussian kernels, whose standard deviations are in px, the fine
    one removes finer detail, and the result of the coarse one is subtracted.
    """
    gaussian_filter = require("scipy.ndimage").gaussian_filter

    noise = generator.standard_normal(shape, dtype=np.float32)
    band = gaussian_filter(noise, fine_px, truncate=3) - gaussian_filter(noise, coarse_px, truncate=3)
    return band / band.std()


def fibres(cosine: Map, sine: Map, length_px: float, width_px: float, generator: np.random.Generator) -> Map:
    """Draws strands that follow a field of directions, (H, W) float32 with deviation about 1.

    White noise is filtered by elongated Gaussian kernels in eight directions, and each pixel takes those near its own.
    Cosine and sine, (H, W), are of twice the direction's angle; length and width are the kernels' standard deviations
    along the strands and across them.
    """
    fft = require("scipy.fft")

    shape = cosine.shape
    padded = (fft.next_fast_len(shape[0], real=True), fft.next_fast_len(shape[1], real=True))
    spectrum = fft.rfft2(generator.standard_normal(padded, dtype=np.float32))
    y = fft.fftfreq(padded[0]).astype(np.float32)[:, None]
    x = fft.rfftfreq(padded[1]).astype(np.float32)[None, :]
    total = np.zeros(shape, np.float32)
    norm = np.zeros(shape, np.float32)
    for index in range(_FIBRE_DIRECTIONS):
        angle = math.pi * index / _FIBRE_DIRECTIONS
        along = x * math.cos(angle) + y * math.sin(angle)
        across = y * math.cos(angle) - x * math.sin(angle)
        kernel = np.exp(-2 * math.pi**2 * ((length_px * along) ** 2 + (width_px * across) ** 2))
        # strands of a kernel's own width: slow changes of the mean belong to the caller
        kernel -= np.exp(-2 * math.pi**2 * ((length_px * along) ** 2 + (5 * width_px * across) ** 2))
        strands = fft.irfft2(spectrum * kernel, s=padded)[: shape[0], : shape[1]]
        alignment = 0.5 + 0.5 * (cosine * math.cos(2 * angle) + sine * math.sin(2 * angle))
        weight = alignment**6
        total += weight * (strands / strands.std())
        norm += weight
    return total / norm
