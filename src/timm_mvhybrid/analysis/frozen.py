"""A selective scan, frozen at the coefficients that it has on real images → what it does to each frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..runtime.errors import ParameterError
from .scan_records import ScanRecord, record_scans, tokens_entering


@dataclass(frozen=True, kw_only=True)
class FrozenGain:
    """The gain of a frozen scan for exp(i ω t), one value for each image, channel and frequency.

    Arrays are (images, channels, frequencies), float64. The channels of a Vim mixer are those of its forward scan, then of
    its backward one; those of Hydra's matrix its heads.

    Attributes:
        omega: Frequencies, rad a token, (frequencies,).
        total: Root mean square of |y| over the tokens: all that comes out, at whatever frequency.
        coherent: |mean of y exp(−i ω t)|: what comes out at the frequency that went in.
        total_without_skip: ``total`` of the states alone, without D (of Hydra without the diagonal).
        coherent_without_skip: ``coherent`` of the states alone.
        settled: Fraction of the tokens that are measured, after the slowest state's transient; 0 where that takes more
            than half of the tokens, and all of them are measured, transient included. (images, channels).
    """

    omega: NDArray[np.float64]
    total: NDArray[np.float64]
    coherent: NDArray[np.float64]
    total_without_skip: NDArray[np.float64]
    coherent_without_skip: NDArray[np.float64]
    settled: NDArray[np.float64]


@torch.no_grad()
def frozen_gain(layer: Any, images: Tensor, omega: ArrayLike) -> FrozenGain:
    """Measures the gain of a selective layer's scan on images.

    A selective scan has no transfer function, because δ, B and C follow its input. Frozen, it has: δ, B and C are recorded
    on the images, and the same scan is run on cos ω t and sin ω t. This is exact for that linear, time-varying system;
    averages of δ or of B C in a closed form are not, because B C fluctuates about 0 and moves energy between frequencies.
    For constant δ, B and C all four gains equal :func:`.transfer_function`. Measured in float64, tokens in scan order.

    A skip D = 1 makes a layer look flat to a thousandth, so that both are given, with it and without.

    Args:
        layer: ``(model, number)``: a state-space block of a model of this package; or a mixer or a block alone, whose
            tokens are then given in place of images.
        images: Images, (batch, 3, height, width), normalised; or the tokens that enter, (batch, length, d_model), in scan
            order.
        omega: Frequencies, rad a token, a number or (frequencies,).

    Returns:
        Gains by image, channel and frequency.

    Raises:
        ParameterError: The layer has no scan, or the images do not fit.

    Examples:
        >>> import timm, torch, timm_mvhybrid
        >>> model = timm.create_model("test_mvhybrid").eval()
        >>> frozen_gain((model, 0), torch.randn(2, 3, 64, 64), [0.0, 1.0]).total.shape
        (2, 64, 2)
    """
    frequencies = np.atleast_1d(np.asarray(omega, dtype=np.float64))
    if frequencies.ndim != 1:
        raise ParameterError(f"`omega` has shape {frequencies.shape}; it must be a number, or (frequencies,)")
    mixer, tokens = tokens_entering(layer, images)
    found = [_gains(record, frequencies) for record in record_scans(mixer, tokens)]
    with_skip, without, settled = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return FrozenGain(
        omega=frequencies,
        total=with_skip[..., 0],
        coherent=with_skip[..., 1],
        total_without_skip=without[..., 0],
        coherent_without_skip=without[..., 1],
        settled=settled,
    )


def _gains(
    record: ScanRecord, omega: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Measures one scan: gains with and without the skip, (images, channels, frequencies, 2), and what is settled."""
    num_images, length = record.delta.shape[:2]
    channels = record.delta.shape[-1]
    window, settled = _window(record)
    phase = torch.as_tensor(omega)[:, None] * torch.arange(length, dtype=torch.float64)
    waves = torch.cat([phase.cos(), phase.sin()]).unsqueeze(-1).expand(-1, -1, channels).contiguous()
    turned_back = torch.polar(torch.ones_like(phase), -phase).unsqueeze(-1)
    rows: dict[bool, list[Tensor]] = {True: [], False: []}
    for image in range(num_images):
        weights = window[image] / window[image].sum(0)
        for skip, kept in rows.items():
            y = torch.complex(*record.run(waves, image, skip).chunk(2))
            total = (y.abs().square() * weights).sum(1).sqrt()
            coherent = (y * turned_back * weights).sum(1).abs()
            kept.append(torch.stack([total, coherent], dim=-1).transpose(0, 1))
    gains = (torch.stack(rows[skip]).numpy() for skip in (True, False))
    return (*gains, settled.numpy())  # type: ignore[return-value]


def _window(record: ScanRecord) -> tuple[Tensor, Tensor]:
    """Chooses the tokens to measure, (images, length, channels) of 0 and 1, and says what fraction they are."""
    length = record.delta.shape[1]
    after = record.settled_after
    times = torch.arange(length)[:, None]
    if after.ndim == 3:
        # Hydra: both directions, the backward one from the other end; each output is a step late
        first, last = after[:, 0, None] + 1, length - 1 - after[:, 1, None] - 1
    elif record.name == "backward":
        first, last = torch.zeros_like(after[:, None]), length - 1 - after[:, None]
    else:
        first, last = after[:, None], torch.full_like(after[:, None], length - 1)
    window = (times >= first) & (times <= last)
    fraction = window.double().mean(1)
    enough = fraction >= 0.5
    window = window | ~enough[:, None]
    return window.double(), torch.where(enough, fraction, torch.zeros_like(fraction))
