"""The selective scan of Mamba: u, δ, A, B, C → y."""

from typing import Literal, overload

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from ...runtime.errors import ParameterError
from .. import forward_mode
from ..implementation import requested_implementation
from ..transforms import wants_portable_form
from . import operator as _operator  # noqa: F401  (registers the operators)
from . import tangents as _tangents  # noqa: F401  (registers the rule in forward mode)
from .portable import selective_scan_portable
from .reference import selective_scan_reference

__all__ = ["selective_scan", "selective_scan_reference", "selective_scan_tokens"]


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
    reverse: bool = False,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    return_last_state: Literal[True],
    reverse: bool = False,
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the selective scan, h_t = exp(δ_t A) h_{t-1} + δ_t B_t u_t and y_t = C_t · h_t + D u_t.

    Same meaning and arguments as mamba_ssm's ``selective_scan_fn`` for real A; differentiable in every tensor
    argument, through the last state too. Formula, source and an example: :func:`selective_scan_reference`.

    Args:
        u: Input, (batch, d_inner, length), float16, bfloat16, float32 or float64.
        delta: Step sizes before bias and softplus, (batch, d_inner, length).
        A: State matrix, real, (d_inner, d_state).
        B: Input matrix: (batch, d_state, length), (batch, groups, d_state, length) where ``groups`` divides d_inner,
            or constant in time (d_inner, d_state).
        C: Output matrix, in the same forms as ``B``.
        D: Skip weights, (d_inner,).
        z: Gate, (batch, d_inner, length): y is multiplied by silu(z).
        delta_bias: Added to ``delta``, (d_inner,).
        delta_softplus: Whether δ is the softplus of the biased ``delta``.
        return_last_state: Whether to return the state after the last step too.
        reverse: Whether time runs from the last token to the first: the same as reversing every input that has an
            axis of time, and y, but without the copies.

    Returns:
        y in the dtype of ``u``, (batch, d_inner, length); with ``return_last_state`` also h_length,
        (batch, d_inner, d_state), in float32 (float64 for float64 input). Sums run in that dtype.

    Raises:
        ParameterError: A shape or dtype does not fit; the message names the argument and what was expected.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    requested = requested_implementation()
    if requested == "reference":
        return selective_scan_reference(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, reverse
        )
    groups_B, groups_C = _groups(B, u), _groups(C, u)
    groups = max(groups_B, groups_C)
    arguments = (
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        _token_major(B, u, groups),
        _token_major(C, u, groups),
        D,
        None if z is None else z.transpose(1, 2),
        delta_bias,
        delta_softplus,
    )
    if wants_portable_form():
        y, last_state = forward_mode.call(selective_scan_portable, *arguments, reverse)
    else:
        save_states = _needs_gradient(u, delta, A, B, C, D, z, delta_bias)
        y, last_state, _ = torch.ops.timm_mvhybrid.selective_scan(*arguments, save_states, requested, reverse)
    y = y.transpose(1, 2)
    return (y, last_state.transpose(2, 3).flatten(1, 2)) if return_last_state else y


@register_notrace_function
def selective_scan_tokens(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    reverse: bool = False,
) -> Tensor:
    """Runs the selective scan on token-major tensors, the layout in which the mixers hold them.

    A leaf for FX, scriptable, and always with softplus; otherwise as :func:`selective_scan`.

    Args:
        u: Input, (batch, length, d_inner).
        delta: Step sizes before bias and softplus, (batch, length, d_inner).
        A: State matrix, (d_inner, d_state).
        B: Input matrix, (batch, length, groups, d_state).
        C: Output matrix, (batch, length, groups, d_state).
        D: Skip weights, (d_inner,).
        z: Gate, (batch, length, d_inner).
        delta_bias: Added to ``delta``, (d_inner,).
        reverse: Whether time runs from the last token to the first.

    Returns:
        y in the dtype of ``u``, (batch, length, d_inner).
    """
    # a trace must not depend on the mode that it was recorded in
    save_states = torch.is_grad_enabled() or torch.jit.is_tracing()
    requested = "current"
    if not torch.jit.is_scripting():
        if wants_portable_form():
            y: Tensor = forward_mode.call(
                selective_scan_portable, u, delta, A, B, C, D, z, delta_bias, True, reverse
            )[0]
            return y
        requested = requested_implementation()
        if requested == "reference":
            return _reference_tokens(u, delta, A, B, C, D, z, delta_bias, reverse)
    return torch.ops.timm_mvhybrid.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, True, save_states, requested, reverse
    )[0]


def _reference_tokens(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    reverse: bool,
) -> Tensor:
    """Runs the plain loop on token-major tensors."""
    y = selective_scan_reference(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        D,
        None if z is None else z.transpose(1, 2),
        delta_bias,
        delta_softplus=True,
        reverse=reverse,
    )
    assert isinstance(y, Tensor)
    return y.transpose(1, 2)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will record the operator."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _groups(matrix: Tensor, u: Tensor) -> int:
    """Groups of channels that share B or C; a matrix constant in time has one group a channel."""
    return {2: u.shape[1], 3: 1}.get(matrix.ndim, matrix.shape[1])


def _token_major(matrix: Tensor, u: Tensor, groups: int) -> Tensor:
    """Views B or C as (batch, length, groups, d_state)."""
    if matrix.ndim == 2:
        return matrix.expand(u.shape[0], u.shape[2], -1, -1)
    if matrix.ndim == 3:
        matrix = matrix.unsqueeze(1)
    matrix = matrix.permute(0, 3, 1, 2)
    return matrix if matrix.shape[2] == groups else matrix.repeat_interleave(groups // matrix.shape[2], dim=2)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raises ParameterError for an argument that does not fit the others."""
    if u.ndim != 3 or u.shape[2] == 0:
        raise ParameterError(
            f"`u` has shape {tuple(u.shape)}; expected (batch, d_inner, length) with length ≥ 1"
        )
    batch, d_inner, length = u.shape
    if A.ndim != 2 or A.shape[0] != d_inner:
        raise ParameterError(f"`A` has shape {tuple(A.shape)}; expected (d_inner={d_inner}, d_state)")
    d_state = A.shape[1]
    for name, x in dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias).items():
        if x is not None and not x.is_floating_point():
            raise ParameterError(f"`{name}` has dtype {x.dtype}; expected a real floating dtype")
    for name, x in dict(delta=delta, z=z).items():
        if x is not None and x.shape != u.shape:
            raise ParameterError(
                f"`{name}` has shape {tuple(x.shape)}; expected that of `u`, {tuple(u.shape)}"
            )
    for name, x in dict(D=D, delta_bias=delta_bias).items():
        if x is not None and x.shape != (d_inner,):
            raise ParameterError(f"`{name}` has shape {tuple(x.shape)}; expected (d_inner={d_inner},)")
    for name, x in dict(B=B, C=C).items():
        fits = {
            2: x.shape == (d_inner, d_state),
            3: x.shape == (batch, d_state, length),
            4: x.ndim == 4
            and (x.shape[0], *x.shape[2:]) == (batch, d_state, length)
            and x.shape[1] > 0
            and d_inner % x.shape[1] == 0,
        }
        if not fits.get(x.ndim, False):
            raise ParameterError(
                f"`{name}` has shape {tuple(x.shape)}; expected (batch={batch}, d_state={d_state}, length={length}), "
                f"(batch, groups, d_state, length) where groups divides d_inner={d_inner}, or (d_inner, d_state)"
            )
    groups = sorted((_groups(B, u), _groups(C, u)))
    if groups[1] % groups[0]:
        raise ParameterError(
            f"`B` and `C` have {groups[0]} and {groups[1]} groups; one number must divide the other"
        )
