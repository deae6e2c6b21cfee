"""Tokens on their grid → how much of them is of which spatial frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.errors import ParameterError

HIGH_RING = 4
"""From this ring on energy counts as high; white noise on a grid of 16 × 16 has 0.828 of it there."""


@dataclass(frozen=True, kw_only=True)
class TokenSpectrum:
    """Spectra of token maps, one for each image; arrays are float64.

    A ring holds the frequencies whose distance from 0, in cycles a grid, has the same whole part; ring 0 is the mean (DC).

    Attributes:
        energy: Fraction of the energy in each ring, (images, rings); rows sum to 1.
        amplitude: Mean modulus in each ring over frequencies and channels, (images, rings).
        dc_share: ``energy`` of ring 0, (images,): 1 where all tokens are equal.
        high_share: Fraction of the energy without ring 0 that is in rings of 4 or more cycles, (images,); NaN where there
            is none.
        log_amplitude_drop: log of the amplitude of the highest full ring over that of ring 1, (images,); ring 8 on a grid of
            16 × 16. Below 0 for a low-pass.
    """

    energy: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    dc_share: NDArray[np.float64]
    high_share: NDArray[np.float64]
    log_amplitude_drop: NDArray[np.float64]


@torch.no_grad()
def token_spectrum(features: Tensor) -> TokenSpectrum:
    """Computes the spatial spectrum of token maps by the 2-D Fourier transform over the grid.

    Patches of 16 px alias: what varies 3, 13 or 19 times over 256 px is at token frequency 3. So this tells what tokens vary
    like, not what the image did.

    Source: Park and Kim (arXiv 2202.06709), section 3, for the log amplitudes; Wang et al. (arXiv 2203.05962) for the
    collapse towards DC.

    Args:
        features: Maps without prefix tokens, (images, dim, rows, columns) as ``forward_intermediates`` gives them; or tokens
            of a square grid, (images, rows · columns, dim).

    Returns:
        Shares and amplitudes by image.

    Raises:
        ParameterError: The shape does not fit, or the grid has fewer than 2 rows or columns.

    Examples:
        >>> import torch
        >>> token_spectrum(torch.ones(1, 3, 8, 8)).dc_share.item()
        1.0
    """
    maps = features.detach().double()
    if maps.ndim == 3:
        side = math.isqrt(maps.shape[1])
        if side * side != maps.shape[1]:
            raise ParameterError(
                f"`features` has shape {tuple(features.shape)}, and {maps.shape[1]} tokens are not a square grid; leave the "
                "prefix tokens out, or give maps (images, dim, rows, columns)"
            )
        maps = maps.transpose(1, 2).unflatten(-1, (side, side))
    if maps.ndim != 4 or min(maps.shape[-2:]) < 2:
        raise ParameterError(
            f"`features` has shape {tuple(features.shape)}; expected maps (images, dim, rows, columns) of at least 2 × 2"
        )
    rows, columns = maps.shape[-2:]
    transformed = torch.fft.fft2(maps, norm="ortho").abs()
    radius = torch.hypot(
        torch.fft.fftfreq(rows, 1 / rows, dtype=torch.float64)[:, None],
        torch.fft.fftfreq(columns, 1 / columns, dtype=torch.float64)[None],
    )
    ring = radius.floor().long().flatten()
    membership = torch.nn.functional.one_hot(ring).double()
    power = transformed.square().sum(1).flatten(1) @ membership
    total = power.sum(1, keepdim=True)
    energy = power / torch.where(total > 0, total, 1.0)
    amplitude = transformed.mean(1).flatten(1) @ membership / membership.sum(0)
    full = min(rows, columns) // 2
    above = power[:, HIGH_RING:].sum(1) / power[:, 1:].sum(1)
    return TokenSpectrum(
        energy=energy.numpy(),
        amplitude=amplitude.numpy(),
        dc_share=energy[:, 0].numpy(),
        high_share=above.numpy(),
        log_amplitude_drop=(amplitude[:, full].log() - amplitude[:, 1].log()).numpy(),
    )
