"""The selective scan as registered operators: one node in compiled, exported, scripted and traced graphs.

``torch.ops.timm_mvhybrid.selective_scan`` works in token-major layout, the layout that linear layers leave behind.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..implementation import choose, load
from ..precision import accumulation_dtype, autocast_disabled


def _chosen(implementation: str, u: Tensor) -> str:
    """Names what runs for an input; a pure function of its arguments unless they say ``current``."""
    return choose("selective_scan", implementation, u.device.type, u.dtype)


def _module(implementation: str, u: Tensor) -> ModuleType:
    """Loads what runs for an input."""
    return load("selective_scan", _chosen(implementation, u))


@torch.library.custom_op("timm_mvhybrid::selective_scan", mutates_args=())
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
    implementation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with autocast_disabled(u.device.type):
        return _module(implementation, u).forward(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, save_states, reverse
        )


@_forward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
    implementation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(u.dtype)
    batch, length, d_inner = u.shape
    groups, d_state = B.shape[2:]
    state = (batch, groups, d_state, d_inner // groups)
    num_chunks = _module(implementation, u).num_chunks(length) if save_states else 0
    return (
        u.new_empty(u.shape),
        u.new_empty(state, dtype=dtype),
        u.new_empty((num_chunks, *state), dtype=dtype),
    )


@torch.library.custom_op("timm_mvhybrid::selective_scan_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    implementation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with autocast_disabled(u.device.type):
        grads = _module(implementation, u).backward(
            grad_y, grad_last_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse
        )
    return tuple(grad.contiguous() for grad in grads)


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    implementation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    optional = [u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (D, z, delta_bias)]
    grads = [x.new_empty(x.shape) for x in (u, delta, A, B, C)]
    return (*grads, *optional)  # type: ignore[return-value]  # eight tensors in all


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        Tensor | None,
        Tensor | None,
        Tensor | None,
        bool,
        bool,
        str,
        bool,
    ],
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    *tensors, delta_softplus, save_states, implementation, reverse = inputs
    if not save_states:
        raise RuntimeError(
            "timm_mvhybrid::selective_scan was called with save_states=False on tensors that need a gradient; "
            "pass save_states=True"
        )
    ctx.save_for_backward(output[2], *tensors)  # type: ignore[arg-type]  # None is allowed
    ctx.delta_softplus, ctx.reverse = delta_softplus, reverse  # type: ignore[attr-defined]
    # what forward ran, for the states are that implementation's, whatever is requested by then
    ctx.implementation = _chosen(implementation, inputs[0])  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx,
    grad_y: Tensor | None,
    grad_last_state: Tensor | None,
    _grad_states: Tensor | None,
) -> tuple[Tensor | None, ...]:
    states, u, *others = ctx.saved_tensors  # type: ignore[attr-defined]
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grads = torch.ops.timm_mvhybrid.selective_scan_backward(
        grad_y,
        grad_last_state,
        states,
        u,
        *others,
        ctx.delta_softplus,  # type: ignore[attr-defined]
        ctx.implementation,  # type: ignore[attr-defined]
        ctx.reverse,  # type: ignore[attr-defined]
    )
    present = [None if x is None else grad for x, grad in zip((u, *others), grads, strict=True)]
    return (*present, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
