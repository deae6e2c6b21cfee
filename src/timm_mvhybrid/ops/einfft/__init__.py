"""EinFFT, a sparse complex perceptron on the spectrum of the tokens: tokens, complex maps → tokens."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from .. import forward_mode
from ..precision import at_least_float32, autocast_disabled
from ..spectral import MATRIX_LENGTH
from ..transforms import wants_portable_form
from . import operator as _operator  # noqa: F401  (registers the operators)
from . import tangents as _tangents  # noqa: F401  (registers the rule in forward mode)
from .portable import einfft_portable
from .reference import einfft_reference

__all__ = ["MATRIX_LENGTH", "NUM_BLOCKS", "einfft", "einfft_portable", "einfft_reference"]

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
    weight_1, bias_1, weight_2, bias_2 = (
        weight_1.to(x.dtype),
        bias_1.to(x.dtype),
        weight_2.to(x.dtype),
        bias_2.to(x.dtype),
    )
    # on other devices a compiler fuses the plain form better than an operator that it cannot see into
    if with_operator and x.device.type == "cpu" and x.shape[1] <= operator_length:
        # a trace must not depend on the mode that it was recorded in
        save = torch.is_grad_enabled() or torch.jit.is_tracing()
        return torch.ops.timm_mvhybrid.einfft(x, weight_1, bias_1, weight_2, bias_2, threshold, save)[0]
    if torch.jit.is_scripting():
        return einfft_portable(x, weight_1, bias_1, weight_2, bias_2, threshold)
    else:
        y: Tensor = forward_mode.call(einfft_portable, x, weight_1, bias_1, weight_2, bias_2, threshold)
        return y
