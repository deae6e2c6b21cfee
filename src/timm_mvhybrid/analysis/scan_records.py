"""A mixer and the tokens that enter it → its scans with the coefficients that they have on these tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import HydraMixer, MambaVisionMixer, SSMBlock, VimMixer
from ..layers.scan_tokens import ScanTokens
from ..ops.complex_scan import complex_scan
from ..ops.quasiseparable import quasiseparable
from ..ops.selective_scan import selective_scan_tokens
from ..ops.step_sizes import step_sizes
from ..runtime.errors import ParameterError

SCAN_MIXERS = (MambaVisionMixer, VimMixer, HydraMixer)


@dataclass(frozen=True)
class ScanRecord:
    """One scan, frozen: what was input-dependent is recorded, so that it is linear in its input, and varies in time.

    Attributes:
        name: Which of the mixer's scans: ``scan``, ``forward``, ``backward``, or ``matrix`` (Hydra's, both directions).
        eigenvalues: A, (channels, states), or (heads, 1) of Hydra; complex ones one of each pair.
        delta: δ, (images, length, channels), in scan time where the scan runs backward; of Hydra
            (images, length, 2, heads).
        run: Input (batch, length, channels) of one image, its index, and whether the skip is added → output of the scan.
    """

    name: str
    eigenvalues: Tensor
    delta: Tensor
    run: Callable[[Tensor, int, bool], Tensor]

    @property
    def decay(self) -> Tensor:
        """Moduli of the decays a token, |exp(δ A)|, (images, length, [2,] channels, states)."""
        rates = self.eigenvalues.real if self.eigenvalues.is_complex() else self.eigenvalues
        return (self.delta.unsqueeze(-1) * rates).exp()

    @property
    def settled_after(self) -> Tensor:
        """Tokens until the slowest state has decayed to exp(−20) = 2e-9, (images, [2,] channels); the length at most."""
        rates = self.eigenvalues.real if self.eigenvalues.is_complex() else self.eigenvalues
        slowest = rates.abs().min(-1).values
        # a state that enters at token t has met the decays of t + 1 onwards
        passed = (self.delta.cumsum(1) - self.delta[:, :1]) * slowest
        return (passed < 20.0).sum(1)


def mixer_of(layer: Any) -> nn.Module:
    """Finds the state-space mixer of a layer: itself, or a block's.

    Raises:
        ParameterError: It has none.
    """
    mixer = layer.mixer if isinstance(layer, SSMBlock) else layer
    if not isinstance(mixer, SCAN_MIXERS):
        raise ParameterError(
            f"`layer` is a {type(mixer).__name__}; give a state-space block of one of this package's models, its mixer, or "
            "(model, number of the block)"
        )
    return mixer


@torch.no_grad()
def tokens_entering(layer: Any, images: Tensor) -> tuple[nn.Module, Tensor]:
    """Resolves a layer and images to a mixer and the tokens that enter it, in scan order.

    Args:
        layer: ``(model, number)`` for a block of a model, whose ``images`` are images, (batch, 3, height, width),
            normalised; or a mixer, or a block, whose ``images`` are the tokens that enter it, (batch, length, d_model).
        images: As above.

    Raises:
        ParameterError: There is no such block, or it has no scan, or the shape does not fit.
    """
    if isinstance(layer, tuple):
        model, number = layer
        blocks = getattr(model, "blocks", ())
        if not 0 <= number < len(blocks):
            raise ParameterError(
                f"`layer` names block {number}, but the model has {len(blocks)}, counted from 0"
            )
        mixer = mixer_of(blocks[number])
        return mixer, _entering(model, images, {number: mixer})[number]
    mixer = mixer_of(layer)
    if images.ndim != 3:
        raise ParameterError(
            f"`images` has shape {tuple(images.shape)}; for a mixer or block give the tokens that enter it, (batch, length, "
            "d_model), or give (model, number of the block) as `layer` and images"
        )
    return mixer, layer.norm1(images) if isinstance(layer, SSMBlock) else images


def tokens_of_scans(model: Any, images: Tensor) -> dict[int, tuple[nn.Module, Tensor]]:
    """Runs a model once and keeps what enters the mixers of its state-space blocks.

    Args:
        model: Any model; one without state-space blocks has none.
        images: (batch, 3, height, width), normalised.

    Returns:
        Number of the block → its mixer, and the tokens that enter it, (batch, length, d_model), in scan order.
    """
    mixers = {
        number: block.mixer
        for number, block in enumerate(getattr(model, "blocks", ()))
        if isinstance(block, SSMBlock)
    }
    if not mixers:
        return {}
    return {number: (mixers[number], tokens) for number, tokens in _entering(model, images, mixers).items()}


@torch.no_grad()
def _entering(model: Any, images: Tensor, mixers: dict[int, nn.Module]) -> dict[int, Tensor]:
    found: dict[int, list[Tensor]] = {number: [] for number in mixers}

    def keep(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: found[number].append(inputs[0])

    handles = [mixer.register_forward_pre_hook(keep(number)) for number, mixer in mixers.items()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {number: torch.cat(parts) for number, parts in found.items()}


@torch.no_grad()
def record_scans(mixer: nn.Module, tokens: Tensor) -> list[ScanRecord]:
    """Records the scans of a mixer on tokens, in float64.

    Args:
        mixer: One of this package's.
        tokens: What enters it, (images, length, d_model), in scan order.
    """
    exact: Any = copy.deepcopy(mixer).double().eval()
    found = exact.scan_inputs(tokens.detach().double())
    if isinstance(exact, HydraMixer):
        return [_record_matrix(exact, found[0])]
    if isinstance(exact, VimMixer):
        return [
            _record_scan("forward", found[0], exact.A_log, exact.A_imag, exact.D, exact.dt_proj.bias, False),
            _record_scan(
                "backward", found[1], exact.A_b_log, exact.A_b_imag, exact.D_b, exact.dt_proj_b.bias, True
            ),
        ]
    return [_record_scan("scan", found[0], exact.A_log, exact.A_imag, exact.D, exact.dt_proj.bias, False)]


def _record_scan(
    name: str,
    tokens: ScanTokens,
    A_log: Tensor,
    A_imag: Tensor | None,
    D: Tensor,
    bias: Tensor | None,
    reverse: bool,
) -> ScanRecord:
    rates = -A_log.exp()

    def run(u: Tensor, image: int, skip: bool) -> Tensor:
        here = slice(image, image + 1)
        dt, B, C = (v[here].expand(len(u), *v.shape[1:]) for v in (tokens.dt, tokens.B, tokens.C))
        skips = D if skip else None
        if A_imag is None:
            return selective_scan_tokens(u, dt, rates, B, C, skips, None, bias, reverse)
        return complex_scan(u, dt, rates, A_imag, B, C, skips, bias, reverse)

    delta = step_sizes(tokens.dt, bias, True, torch.float64)
    eigenvalues = rates if A_imag is None else torch.complex(rates, A_imag)
    return ScanRecord(name, eigenvalues, delta.flip(1) if reverse else delta, run)


def _record_matrix(mixer: HydraMixer, tokens: ScanTokens) -> ScanRecord:
    """Hydra's operator is the same for every channel of a head, so that a head counts as one channel."""
    rates = -mixer.A_log.exp()
    diagonal = mixer.diagonal(tokens.x)

    def run(u: Tensor, image: int, skip: bool) -> Tensor:
        here = slice(image, image + 1)
        dt, B, C, own = (
            v[here].expand(len(u), *v.shape[1:]) for v in (tokens.dt, tokens.B, tokens.C, diagonal)
        )
        skips = own if skip else torch.zeros_like(own)
        return quasiseparable(u.unsqueeze(-1), dt, rates, B, C, mixer.dt_bias, skips).squeeze(-1)

    delta = step_sizes(tokens.dt, mixer.dt_bias, True, torch.float64)
    delta = torch.stack([delta[:, :, 0], delta[:, :, 1].flip(1)], dim=2)
    return ScanRecord("matrix", rates.unsqueeze(-1), delta, run)
