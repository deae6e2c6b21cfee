"""Root-mean-square norm followed by a gate, the end of Hydra's mixer: y, z, weight → tokens."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from ..transforms import wants_portable_form
from . import operator as _operator  # noqa: F401  (registers the operators)
from .portable import gated_norm_portable
from .reference import gated_norm_reference

__all__ = ["gated_norm", "gated_norm_portable", "gated_norm_reference"]


@register_notrace_function
def gated_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, overwrite: bool = False) -> Tensor:
    """Computes y / √(mean(y²) + eps) · weight · silu(z), the mean over channels; a leaf for FX, and scriptable.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467), equation 4; the gate is that
    of Hwang et al., "Hydra" (arXiv 2407.09941).

    Args:
        y: Tokens, (batch, length, channels), float16, bfloat16, float32 or float64.
        z: Gate before its activation, of the shape of ``y``.
        weight: (channels,).
        eps: Added to the mean square.
        overwrite: Whether the result may overwrite ``y``; it does where autograd does not need it.

    Returns:
        (batch, length, channels) in the dtype of ``y``. On a CPU sums and products run in float32, or in float64 for
        float64 input.
    """
    if not torch.jit.is_scripting():
        # on other devices a compiler fuses the plain form better than an operator that it cannot see into
        if wants_portable_form() or y.device.type != "cpu":
            return gated_norm_portable(y, z, weight, eps)
    # a trace must not depend on the mode that it was recorded in
    differentiable = torch.is_grad_enabled() or torch.jit.is_tracing()
    if overwrite and not differentiable and y.is_contiguous():
        torch.ops.timm_mvhybrid.gated_norm_(y, z, weight, eps)
        return y
    return torch.ops.timm_mvhybrid.gated_norm(y, z, weight, eps, differentiable)[0]
