"""The selective scan with complex poles in pairs: u, δ, A ± i w, B, C → y."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from ..implementation import requested_implementation
from ..transforms import wants_portable_form
from . import operator as _operator  # noqa: F401  (registers the operators)
from .portable import complex_scan_portable
from .reference import complex_scan_reference

__all__ = ["complex_scan", "complex_scan_portable", "complex_scan_reference"]


@register_notrace_function
def complex_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    w: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    reverse: bool = False,
) -> Tensor:
    """Runs the selective scan with conjugate pairs of poles, h_t = exp(δ_t (A + i w)) h_{t−1} + δ_t B_t u_t, y = 2 Re(C · h) + D u.

    Token-major, always with softplus, differentiable in every tensor, a leaf for FX, and scriptable. Formula, source and an
    example: :func:`complex_scan_reference`. Beside the reference there are kernels of numba for
    CPUs and plain torch for any device; nobody's Triton or CUDA kernels take complex poles, and a request for them raises.

    Args:
        u: Input, (batch, length, d_inner), float16, bfloat16, float32 or float64.
        delta: Step sizes before bias and softplus, (batch, length, d_inner).
        A: Real parts of the poles, negative, (d_inner, pairs).
        w: Imaginary parts, (d_inner, pairs); each pole stands for itself and its conjugate.
        B: Input matrix, (batch, length, groups, 2 pairs), real parts first; ``groups`` divides d_inner.
        C: Output matrix, likewise.
        D: Skip weights, (d_inner,).
        delta_bias: Added to ``delta``, (d_inner,).
        reverse: Whether time runs from the last token to the first.

    Returns:
        y in the dtype of ``u``, (batch, length, d_inner). Sums run in float32, or in float64 for float64 input.

    Raises:
        ImplementationError: Triton or mamba-ssm was requested.
    """
    # a trace must not depend on the mode that it was recorded in
    save_states = torch.is_grad_enabled() or torch.jit.is_tracing()
    requested = "current"
    if not torch.jit.is_scripting():
        if wants_portable_form():
            return complex_scan_portable(u, delta, A, w, B, C, D, delta_bias, reverse)
        requested = requested_implementation()
        if requested == "reference":
            return complex_scan_reference(u, delta, A, w, B, C, D, delta_bias, reverse)
    return torch.ops.timm_mvhybrid.complex_scan(
        u, delta, A, w, B, C, D, delta_bias, save_states, requested, reverse
    )[0]
