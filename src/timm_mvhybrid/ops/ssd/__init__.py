"""The state-space-duality scan of Mamba-2 and Hydra: x, δ, A, B, C → y."""

from typing import Literal, overload

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from ...runtime.errors import ParameterError
from ..implementation import requested_implementation
from ..transforms import wants_portable_form
from . import operator as _operator  # noqa: F401  (registers the operators)
from .portable import ssd_scan_portable
from .reference import ssd_scan_reference

__all__ = ["ssd_scan", "ssd_scan_heads", "ssd_scan_reference"]


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    return_last_state: Literal[False] = False,
    reverse: bool = False,
) -> Tensor: ...


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    return_last_state: Literal[True],
    reverse: bool = False,
) -> tuple[Tensor, Tensor]: ...


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs Mamba-2's scan, h_t = exp(δ_t A) h_{t-1} + δ_t x_t ⊗ B_t and y_t = h_t C_t + D x_t.

    Same meaning and layout as mamba_ssm's ``mamba_chunk_scan_combined``; differentiable in every tensor argument,
    through the last state too. Formula, source and an example: :func:`ssd_scan_reference`.

    Args:
        x: Input, (batch, length, heads, headdim), float16, bfloat16, float32 or float64.
        dt: Step sizes before bias and softplus, (batch, length, heads).
        A: Decay rates, one a head, (heads,).
        B: Input matrix, (batch, length, groups, d_state) where ``groups`` divides heads.
        C: Output matrix, of the shape of ``B``.
        D: Skip weights, (heads,).
        dt_bias: Added to ``dt``, (heads,).
        dt_softplus: Whether δ is the softplus of the biased ``dt``.
        return_last_state: Whether to return the state after the last step too.
        reverse: Whether time runs from the last token to the first: the same as reversing every input that has an
            axis of time, and y, but without the copies.

    Returns:
        y in the dtype of ``x``, (batch, length, heads, headdim); with ``return_last_state`` also h_length,
        (batch, heads, headdim, d_state), in float32 (float64 for float64 input). Sums run in that dtype.

    Raises:
        ParameterError: A shape or dtype does not fit; the message names the argument and what was expected.
    """
    _check(x, dt, A, B, C, D, dt_bias)
    requested = requested_implementation()
    if requested == "reference":
        return ssd_scan_reference(x, dt, A, B, C, D, dt_bias, dt_softplus, return_last_state, reverse)
    if wants_portable_form():
        y, last_state = ssd_scan_portable(x, dt, A, B, C, D, dt_bias, dt_softplus, reverse)
    else:
        save_states = torch.is_grad_enabled() and any(
            v is not None and v.requires_grad for v in (x, dt, A, B, C, D, dt_bias)
        )
        y, last_state, _ = torch.ops.timm_mvhybrid.ssd_scan(
            x, dt, A, B, C, D, dt_bias, dt_softplus, save_states, requested, reverse
        )
    return (y, last_state) if return_last_state else y


@register_notrace_function
def ssd_scan_heads(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, reverse: bool = False
) -> Tensor:
    """Runs the scan with softplus and bias, for the mixers: a leaf for FX, and scriptable.

    Args:
        x: Input, (batch, length, heads, headdim).
        dt: Step sizes before bias and softplus, (batch, length, heads).
        A: Decay rates, (heads,).
        B: Input matrix, (batch, length, groups, d_state).
        C: Output matrix, (batch, length, groups, d_state).
        dt_bias: Added to ``dt``, (heads,).
        reverse: Whether time runs from the last token to the first.

    Returns:
        y in the dtype of ``x``, (batch, length, heads, headdim).
    """
    # a trace must not depend on the mode that it was recorded in
    save_states = torch.is_grad_enabled() or torch.jit.is_tracing()
    requested = "current"
    if not torch.jit.is_scripting():
        if wants_portable_form():
            return ssd_scan_portable(x, dt, A, B, C, None, dt_bias, True, reverse)[0]
        requested = requested_implementation()
        if requested == "reference":
            return _reference_heads(x, dt, A, B, C, dt_bias, reverse)
    return torch.ops.timm_mvhybrid.ssd_scan(
        x, dt, A, B, C, None, dt_bias, True, save_states, requested, reverse
    )[0]


def _reference_heads(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, reverse: bool
) -> Tensor:
    """Runs the plain loop; a function of its own, because TorchScript compiles its caller."""
    y = ssd_scan_reference(x, dt, A, B, C, None, dt_bias, dt_softplus=True, reverse=reverse)
    assert isinstance(y, Tensor)
    return y


def _check(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None
) -> None:
    """Raises ParameterError for an argument that does not fit the others."""
    if x.ndim != 4 or x.shape[1] == 0:
        raise ParameterError(
            f"`x` has shape {tuple(x.shape)}; expected (batch, length, heads, headdim) with length ≥ 1"
        )
    batch, length, heads, _ = x.shape
    for name, v in dict(x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias).items():
        if v is not None and not v.is_floating_point():
            raise ParameterError(f"`{name}` has dtype {v.dtype}; expected a real floating dtype")
    by_head = {"A": A, "D": D, "dt_bias": dt_bias}
    for name, v in {"dt": dt, **by_head}.items():
        expected = (heads,) if name in by_head else (batch, length, heads)
        if v is not None and v.shape != expected:
            raise ParameterError(f"`{name}` has shape {tuple(v.shape)}; expected {expected}")
    for name, v in dict(B=B, C=C).items():
        if v.ndim != 4 or v.shape[:2] != (batch, length) or v.shape[2] == 0 or heads % v.shape[2]:
            raise ParameterError(
                f"`{name}` has shape {tuple(v.shape)}; expected (batch={batch}, length={length}, groups, d_state) "
                f"where groups divides heads={heads}"
            )
    if B.shape != C.shape:
        raise ParameterError(
            f"`B` has shape {tuple(B.shape)} but `C` has {tuple(C.shape)}; they must be the same"
        )
