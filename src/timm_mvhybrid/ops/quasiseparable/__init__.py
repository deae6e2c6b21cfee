"""Hydra's quasiseparable matrix over the tokens: x, δ, A, B, C, diagonal → y."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from ..implementation import requested_implementation
from ..transforms import wants_portable_form
from . import operator as _operator  # noqa: F401  (registers the operators)
from .portable import quasiseparable_portable
from .reference import quasiseparable_reference

__all__ = ["quasiseparable", "quasiseparable_portable", "quasiseparable_reference"]


@register_notrace_function
def quasiseparable(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, diagonal: Tensor
) -> Tensor:
    """Adds Mamba-2's scans of both directions, each a step late, and a diagonal; a leaf for FX, and scriptable.

    With the scans s of :func:`.ssd_scan`, with softplus, from the first to the last token and from the last to the
    first::

        y_t = s_{t−1}(forward) + s_{t+1}(backward) + diagonal_t x_t

    where scans are zero outside the sequence; :func:`quasiseparable_reference` writes it out. Source: Hwang et al.,
    "Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers" (arXiv 2407.09941), section 4.

    Args:
        x: Input, (batch, length, heads, headdim), float16, bfloat16, float32 or float64.
        dt: Step sizes before bias and softplus, (batch, length, 2, heads), forward direction first.
        A: Decay rates of both directions, (heads,).
        B: Input matrices, (batch, length, 2, groups, d_state) where ``groups`` divides heads.
        C: Output matrices, of the shape of ``B``.
        dt_bias: Added to ``dt``, (heads,).
        diagonal: (batch, length, heads).

    Returns:
        y in the dtype of ``x``, (batch, length, heads, headdim). Sums run in float32, or in float64 for float64 input.
    """
    # a trace must not depend on the mode that it was recorded in
    save_states = torch.is_grad_enabled() or torch.jit.is_tracing()
    requested = "current"
    if not torch.jit.is_scripting():
        requested = requested_implementation()
        # on other devices a compiler can fuse what stands around the two scans
        if wants_portable_form() or requested == "reference" or x.device.type != "cpu":
            return quasiseparable_portable(x, dt, A, B, C, dt_bias, diagonal)
    return torch.ops.timm_mvhybrid.quasiseparable(x, dt, A, B, C, dt_bias, diagonal, save_states, requested)[
        0
    ]
