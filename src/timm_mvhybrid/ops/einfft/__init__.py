"""EinFFT, a sparse complex perceptron on the spectrum of the tokens: tokens, complex maps → tokens."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from ..precision import at_least_float32, autocast_disabled
from ..spectral import MATRIX_LENGTH
from ..transforms import wants_portable_form
from . import operator as _operator  # noqa: F401  (registers the operators)
from .plain import einfft_plain

__all__ = ["MATRIX_LENGTH", "NUM_BLOCKS", "einfft", "einfft_plain"]

NUM_BLOCKS = 4
"""Blocks of channels; the transform over them is written out as a butterfly."""


@register_notrace_function
def einfft(
    x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, threshold: float
) -> Tensor:
    """Computes EinFFT; a leaf for FX, and scriptable.

    With the orthonormal two-dimensional transform X of the tokens over (tokens, blocks)::

        Y = shrink(W₂ relu(W₁ X + b₁) + b₂),    result = Re(inverse transform of Y)

    where relu and shrink act on real and imaginary part separately. Source: Patro and Agneeswaran, "SiMBA"
    (arXiv 2403.15360), section 3.2.

    Args:
        x: Tokens, (batch, length, d_model).
        weight_1: First maps, (2, 4, d_model / 4, d_model / 4): real and imaginary part, block, input, output channel.
        bias_1: (2, 4, d_model / 4).
        weight_2: Second maps, of the shape of ``weight_1``.
        bias_2: Of the shape of ``bias_1``.
        threshold: Soft-shrinkage.

    Returns:
        (batch, length, d_model) in float32 or float64, which it is computed in, also under autocast.
    """
    if torch.jit.is_scripting():
        return _einfft(x, weight_1, bias_1, weight_2, bias_2, threshold, True)
    else:
        with autocast_disabled(x.device.type):
            return _einfft(x, weight_1, bias_1, weight_2, bias_2, threshold, not wants_portable_form())


def _einfft(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    threshold: float,
    with_operator: bool,
    operator_length: int = MATRIX_LENGTH,
) -> Tensor:
    x = at_least_float32(x)
    maps_1, bias_1 = _real_maps(weight_1.to(x.dtype), True), _real_biases(bias_1.to(x.dtype))
    maps_2, bias_2 = _real_maps(weight_2.to(x.dtype), False), _real_biases(bias_2.to(x.dtype))
    # on other devices a compiler fuses the plain form better than an operator that it cannot see into
    if with_operator and x.device.type == "cpu" and x.shape[1] <= operator_length:
        # a trace must not depend on the mode that it was recorded in
        save = torch.is_grad_enabled() or torch.jit.is_tracing()
        return torch.ops.timm_mvhybrid.einfft(x, maps_1, bias_1, maps_2, bias_2, threshold, save)[0]
    return einfft_plain(x, maps_1, bias_1, maps_2, bias_2, threshold)


def _real_maps(weight: Tensor, conjugate: bool) -> Tensor:
    """Writes complex maps as real ones, for positive and for negative frequencies.

    The maps break the conjugate symmetry of the spectrum, so the negative frequencies pass them too. Block −b at −k
    holds the conjugate of block b at k: the same rows, with the sign of the imaginary inputs and the other block's map.

    Args:
        weight: (2, 4, width, width).
        conjugate: Whether the rows of the negative frequencies stand for their conjugates, as at the first map.

    Returns:
        (2, 4, 2 · width, 2 · width).
    """
    real, imaginary = weight.unbind(0)
    from_real = torch.cat([real, imaginary], dim=-1)
    from_imaginary = torch.cat([-imaginary, real], dim=-1)
    positive = torch.cat([from_real, from_imaginary], dim=-2)
    negative = torch.cat([from_real, -from_imaginary], dim=-2) if conjugate else positive
    return torch.stack([positive, _mirrored(negative)])


def _real_biases(bias: Tensor) -> Tensor:
    """Writes complex biases, (2, 4, width), as real ones for both signs of the frequency, (2, 4, 2 · width)."""
    joined = torch.cat([bias[0], bias[1]], dim=-1)
    return torch.stack([joined, _mirrored(joined)])


def _mirrored(blocks: Tensor) -> Tensor:
    """Reorders the blocks 0, 1, 2, 3 to 0, −1, −2, −3 modulo four."""
    return torch.cat([blocks[:1], blocks[1:].flip(0)])
