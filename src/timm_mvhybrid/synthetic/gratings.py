"""A test chart in place of tissue: spots + bands → patches whose gratings run upright or level, as the genes ask.

In each band of spatial frequency a patch holds one grating that varies along x and one that varies along y, of one
frequency each, drawn anew, and of any phase. Their energies add up to the same in every patch and every band; what
differs is how they share it, the alignment. So neither colour, nor contrast, nor the energy of a band tells anything:
an image and its transpose have the same colours, contrasts and lengths of gradients, and opposite alignments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .frequency_bands import FrequencyBand
from .random_fields import Map, smooth_field

CHART_PITCH_UM = 132.0
"""Distance of spots: patches of 112 µm do not overlap, so that each has an alignment of its own."""
_HAEMATOXYLIN, _EOSIN = 0.15, 0.35
_LEVEL = 0.08
"""Standard deviation of the logarithm of a patch's stain, which says nothing of any gene."""
_LOG_RATIO = 0.6
"""Half of the change of ln(energy across / energy along) for one standard unit of alignment."""
_SMOOTH_SHARE = 1 / 3
_FIELD_STEP_UM, _FIELD_SCALE_UM = 20.0, 150.0


def draw_alignment(
    positions_um: NDArray[np.float64], num_bands: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draws each spot's alignment in each band, in standard units.

    A third of the variance is smooth over the slide, so that neighbours resemble each other. The values of a slide are
    those of the normal distribution at (rank − ½) / N, the same for each band and slide: none of them has more to explain
    than another.

    Args:
        positions_um: Centres of the spots in µm, (N, 2).
        num_bands: Bands.
        generator: Where randomness comes from.

    Returns:
        (N, bands), each column with mean 0 and, for two spots or more, deviation 1.
    """
    num_spots = len(positions_um)
    places = np.floor(positions_um / _FIELD_STEP_UM).astype(int)
    shape = (int(places[:, 1].max()) + 1, int(places[:, 0].max()) + 1)
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((rank + 0.5) / num_spots) for rank in range(num_spots)])
    if num_spots > 1:
        quantiles /= quantiles.std()
    alignment = np.empty((num_spots, num_bands))
    for band in range(num_bands):
        field = smooth_field(shape, _FIELD_SCALE_UM / _FIELD_STEP_UM, generator)
        values = math.sqrt(_SMOOTH_SHARE) * field[places[:, 1], places[:, 0]]
        values = values + math.sqrt(1 - _SMOOTH_SHARE) * generator.standard_normal(num_spots)
        alignment[np.argsort(values, kind="stable"), band] = quantiles
    return alignment


def draw_gratings(
    alignment: NDArray[np.float64],
    bands: Sequence[FrequencyBand],
    side: int,
    generator: np.random.Generator,
) -> Map:
    """Draws the gratings of one patch, (side, side) float32, with variance 1 in each band.

    Band by band √(1 + a) cos(2π(k x + l y)/side + φ) + √(1 − a) cos(2π(m x + n y)/side + ψ), with a = tanh(0.6 · alignment),
    (k, l) near the x axis and (m, n) near the y axis.
    """
    place = np.arange(side) / side
    picture = np.zeros((side, side))
    for band, value in zip(bands, np.tanh(_LOG_RATIO * alignment).tolist(), strict=True):
        modes = band.modes
        (across, along), (rise, run) = modes[generator.integers(len(modes), size=2)].tolist()
        phases = generator.uniform(0, 2 * math.pi, 2).tolist()
        for x, y, share, phase in ((across, along, 1 + value, phases[0]), (run, rise, 1 - value, phases[1])):
            column = np.exp(1j * (2 * math.pi * y * place + phase))
            picture += math.sqrt(share) * np.outer(column, np.exp(2j * math.pi * x * place)).real
    return picture.astype(np.float32)


def stain_chart(
    shape: tuple[int, int],
    coords: NDArray[np.int64],
    side: int,
    alignment: NDArray[np.float64],
    bands: Sequence[FrequencyBand],
    contrast: float,
    generator: np.random.Generator,
) -> tuple[Map, Map]:
    """Stains a section that shows gratings in the place of each patch, and is even between them.

    Args:
        shape: Height and width in px.
        coords: Top left corners of the patches in px, (N, 2).
        side: Side of a patch in px.
        alignment: In standard units, (N, bands).
        bands: The bands.
        contrast: Standard deviation of each band's gratings relative to the mean of the stains.
        generator: Where randomness comes from.

    Returns:
        Concentration of haematoxylin, (H, W) float32, and of eosin.
    """
    amount = np.ones(shape, np.float32)
    for (x, y), values in zip(coords.tolist(), alignment, strict=True):
        level = math.exp(_LEVEL * float(generator.standard_normal()))
        picture = draw_gratings(values, bands, side, generator)
        amount[y : y + side, x : x + side] = level * (1 + contrast * picture)
    return np.float32(_HAEMATOXYLIN) * amount, np.float32(_EOSIN) * amount


def grating_energies(patches: NDArray[np.uint8], bands: Sequence[FrequencyBand]) -> NDArray[np.float64]:
    """Measures in each band of a patch what varies across it and what varies along it: what an ideal observer takes.

    Of the optical density, −ln of the mean of the channels, the Fourier transform's squares within 27° of the x axis and of
    the y axis, divided by the number of px: with whole cycles, the variance of each band's gratings. ln of their ratio
    follows the alignment.

    Args:
        patches: RGB, (N, height, width, 3) uint8.
        bands: The bands, in cycles per patch.

    Returns:
        (N, 2 · bands): across and along, band by band.
    """
    height, width = patches.shape[1:3]
    down = np.abs(np.fft.fftfreq(height, 1 / height))[:, None]
    right = np.abs(np.fft.fftfreq(width, 1 / width))[None, :]
    length = np.hypot(down, right)
    masks = []
    for band in bands:
        ring = (length >= band.low) & (length < band.high)
        masks += [ring & (2 * down <= right), ring & (2 * right <= down)]
    energies = np.empty((len(patches), len(masks)))
    for index, patch in enumerate(patches):
        density = -np.log(np.maximum(patch.mean(axis=2) / 255, 1 / 255))
        power = np.abs(np.fft.fft2(density)) ** 2 / density.size**2
        energies[index] = [power[mask].sum() for mask in masks]
    return energies
