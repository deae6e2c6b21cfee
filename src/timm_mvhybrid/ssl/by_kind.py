"""A network in training → gradient norms by kind of parameter, and what its blocks do: where instability begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import HydraMixer, MambaVisionMixer, SSMBlock, VimMixer
from ..models import HybridVisionTransformer
from ..ops.step_sizes import step_sizes

KINDS = ("mask_token", "in_proj", "out_proj", "A_log", "channel_mixer", "attn", "mlp", "heads", "other")
"""Kinds of parameters; ``A_log`` holds all of the eigenvalues, ``heads`` the projection heads of self-supervision."""

WATCHED_IMAGES = 8
"""Crops on which blocks are measured."""

_PARTS = {
    "mask_token": "mask_token",
    "in_proj": "in_proj",
    "out_proj": "out_proj",
    "A_log": "A_log",
    "A_b_log": "A_log",
    "A_imag": "A_log",
    "A_b_imag": "A_log",
    "channel_mixer": "channel_mixer",
    "attn": "attn",
    "mlp": "mlp",
    "dino_head": "heads",
    "ibot_head": "heads",
}


def kind_of(name: str) -> str:
    """Tells the kind of a parameter from its name."""
    return next((_PARTS[part] for part in name.split(".") if part in _PARTS), "other")


@torch.no_grad()
def gradient_norms(module: nn.Module) -> dict[str, Tensor]:
    """Computes the norm of the whole gradient of each kind of parameter, as clipping would; every process calls it.

    Args:
        module: A network after its backward pass, sharded or not.

    Returns:
        Kind → norm, a scalar on the device; kinds without a gradient are left out.
    """
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(kind_of(name), []).append(parameter.grad)
    norms = {}
    for kind in KINDS:
        if kind in gradients:
            norm = torch.nn.utils.get_total_norm(gradients[kind])
            # of a sharded module it is a DTensor
            whole = getattr(norm, "full_tensor", None)
            norms[kind] = norm if whole is None else whole()
    return norms


@torch.no_grad()
def block_measures(backbone: Any, run: Callable[[], Any]) -> dict[str, float]:
    """Measures the blocks of a backbone while it runs.

    Args:
        backbone: A timm VisionTransformer.
        run: Runs it once, in evaluation mode, by the ``forward`` of whatever is sharded; every process calls it.

    Returns:
        ``block_rms/NN``: root mean square of the tokens after block NN. ``mixer_gain/NN`` and ``channel_gain/NN``: that of
        what its sequence mixer and its channel mixer put out, over that of what enters them. ``delta/min``, ``delta/max``:
        range of the scans' step sizes. ``A_log/min``, ``A_log/max``: range of the logarithms of the decay rates.
    """
    found: dict[str, float] = {}
    with _watched(backbone, found):
        run()
    return dict(sorted(found.items()))


def starts_at_zero(backbone: Any) -> bool:
    """Whether a mask token of a model is exactly 0, and would stay so through its leading state-space blocks.

    Without a position embedding, and without EinFFT, which mixes all tokens and has random biases, nothing is added to it:
    projections have no bias, or a gate that is 0 at 0. LayerNorm has the slope 1/√eps there, 316 for an eps of 1e-5, and
    multiplies the mask token's gradient by it in each block.
    """
    return (
        isinstance(backbone, HybridVisionTransformer)
        and backbone.ssm_places[0]
        and backbone.channel_mixer != "einfft"
        and backbone.pos_embed is None
        and backbone.mask_token is not None
        and not bool(backbone.mask_token.any())
    )


def start_warnings(backbone: Any) -> tuple[str, ...]:
    """Says that a model is about to be trained with a mask token that stays 0; nothing of others."""
    if not starts_at_zero(backbone):
        return ()
    return (
        "the mask token starts at 0 and stays 0 through the state-space blocks, because the model has neither EinFFT nor "
        "a position embedding: every LayerNorm multiplies its gradient by 1/√eps = 316 or so, and the first steps may be "
        "clipped to nothing; start it with `model.arguments={'mask_token_std': 0.02}`",
    )


@contextmanager
def _watched(backbone: Any, found: dict[str, float]) -> Iterator[None]:
    """Writes down what passes through the blocks within."""
    handles = []

    def gain(name: str) -> Any:
        def measure(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = _rms(output) / max(_rms(inputs[0]), 1e-30)

        return measure

    def rms(name: str) -> Any:
        def measure(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = _rms(output)

        return measure

    def scans(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _widen(found, scan_ranges(module, inputs[0]))

    for number, block in enumerate(backbone.blocks):
        parts = (
            {"mixer_gain": block.mixer, "channel_gain": block.channel_mixer}
            if isinstance(block, SSMBlock)
            else {"mixer_gain": getattr(block, "attn", None), "channel_gain": getattr(block, "mlp", None)}
        )
        handles.append(block.register_forward_hook(rms(f"block_rms/{number:02d}")))
        for name, part in parts.items():
            if part is not None:
                handles.append(part.register_forward_hook(gain(f"{name}/{number:02d}")))
        if isinstance(block, SSMBlock):
            handles.append(block.mixer.register_forward_pre_hook(scans))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def scan_ranges(mixer: Any, tokens: Tensor) -> Mapping[str, float]:
    """Measures the ranges of δ and A_log of a mixer on the tokens that enter it."""
    inputs = mixer.scan_inputs(tokens)
    if isinstance(mixer, HydraMixer):
        steps, rates = [(inputs[0].dt, mixer.dt_bias)], [mixer.A_log]
    elif isinstance(mixer, VimMixer):
        steps = [(inputs[0].dt, mixer.dt_proj.bias), (inputs[1].dt, mixer.dt_proj_b.bias)]
        rates = [mixer.A_log, mixer.A_b_log]
    elif isinstance(mixer, MambaVisionMixer):
        steps, rates = [(inputs[0].dt, mixer.dt_proj.bias)], [mixer.A_log]
    else:
        return {}
    deltas = [step_sizes(dt, bias, True, torch.float32) for dt, bias in steps]
    return {
        "delta/min": min(float(delta.min()) for delta in deltas),
        "delta/max": max(float(delta.max()) for delta in deltas),
        "A_log/min": min(float(rate.min()) for rate in rates),
        "A_log/max": max(float(rate.max()) for rate in rates),
    }


def _widen(found: dict[str, float], ranges: Mapping[str, float]) -> None:
    for name, value in ranges.items():
        widest = min if name.endswith("min") else max
        found[name] = widest(found.get(name, value), value)


def _rms(x: Tensor) -> float:
    return float(x.detach().float().square().mean().sqrt())
