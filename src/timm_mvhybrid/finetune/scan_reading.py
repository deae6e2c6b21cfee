"""The ST token in a state-space mixer: it reads the state at its place, with its own C, skip and gate.

Where the scans run both ways its place is the class token's, the middle; a scan that runs one way is read at its end,
where its state has seen every token. What it would add to the state, its step size of 0 takes away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..layers import HydraMixer, MambaVisionMixer, VimMixer
from ..layers.scan_tokens import ScanTokens
from ..ops.precision import at_least_float32
from .state_reading import read_selective_scan, read_ssd_scan


def read_mixer(mixer: nn.Module, tokens: Any, own: Any) -> Tensor:
    """Computes a mixer's output for a token that only reads.

    Args:
        mixer: One of this package's.
        tokens: What its ``scan_inputs`` found of the ordinary tokens, in scan order.
        own: What it found of the one token.

    Returns:
        (batch, 1, d_model).
    """
    if isinstance(mixer, MambaVisionMixer):
        return _mambavision(mixer, *tokens, *own)
    if isinstance(mixer, VimMixer):
        return _vim(mixer, tokens, own)
    assert isinstance(mixer, HydraMixer)
    return _hydra(mixer, *tokens, *own)


def _mambavision(
    mixer: MambaVisionMixer, tokens: ScanTokens, _: Tensor, own: ScanTokens, z: Tensor
) -> Tensor:
    y = _scanned(tokens, own, mixer.A_log, mixer.D, mixer.dt_proj.bias, reverse=False)
    return mixer.out_proj(torch.cat([y, z], dim=-1))


def _vim(mixer: VimMixer, tokens: Any, own: Any) -> Tensor:
    before, after = _halves(tokens[0], tokens[1])
    y = _scanned(before, own[0], mixer.A_log, mixer.D, mixer.dt_proj.bias, reverse=False)
    y_b = _scanned(after, own[1], mixer.A_b_log, mixer.D_b, mixer.dt_proj_b.bias, reverse=True)
    return mixer.join(y, y_b, own[2])


def _hydra(mixer: HydraMixer, tokens: ScanTokens, _: Tensor, own: ScanTokens, z: Tensor) -> Tensor:
    rates = -torch.exp(at_least_float32(mixer.A_log))
    y = at_least_float32(mixer.diagonal(own.x).unsqueeze(-1) * own.x)
    for direction, part in enumerate(_halves(tokens, tokens)):
        reverse = direction == 1
        y = y + read_ssd_scan(part, own.C, rates, mixer.dt_bias, direction, reverse=reverse)
    return mixer.join(y.to(own.x.dtype), z)


def _scanned(
    tokens: ScanTokens, own: ScanTokens, A_log: Tensor, D: Tensor, dt_bias: Tensor, *, reverse: bool
) -> Tensor:
    rates = -torch.exp(at_least_float32(A_log))
    y = read_selective_scan(tokens, own.C, rates, dt_bias, reverse=reverse)
    return (y + D * own.x).to(own.x.dtype)


def _halves(forward: ScanTokens, backward: ScanTokens) -> tuple[ScanTokens, ScanTokens]:
    """Cuts off what each scan has met at the middle, which both have met."""
    middle = (forward.x.shape[1] - 1) // 2
    return (
        ScanTokens(*(x[:, : middle + 1] for x in forward)),
        ScanTokens(*(x[:, middle:] for x in backward)),
    )
