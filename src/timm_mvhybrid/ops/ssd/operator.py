"""The state-space-duality scan as registered operators, ``torch.ops.timm_mvhybrid.ssd_scan`` and its backward."""

from types import ModuleType

import torch
from torch import Tensor

from ..implementation import choose, load
from ..precision import accumulation_dtype, autocast_disabled


def _chosen(implementation: str, x: Tensor) -> str:
    """Names what runs for an input; a pure function of its arguments unless they say ``current``."""
    return choose("ssd_scan", implementation, x.device.type, x.dtype)


def _module(implementation: str, x: Tensor) -> ModuleType:
    """Loads what runs for an input."""
    return load("ssd_scan", _chosen(implementation, x))


@torch.library.custom_op("timm_mvhybrid::ssd_scan", mutates_args=())
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    save_states: bool,
    implementation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with autocast_disabled(x.device.type):
        return _module(implementation, x).forward(
            x, dt, A, B, C, D, dt_bias, dt_softplus, save_states, reverse
        )


@_forward.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    save_states: bool,
    implementation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    batch, length, heads, headdim = x.shape
    state = (batch, heads, headdim, B.shape[-1])
    chunks = _module(implementation, x).num_chunks(length) if save_states else 0
    return x.new_empty(x.shape), x.new_empty(state, dtype=dtype), x.new_empty((chunks, *state), dtype=dtype)


@torch.library.custom_op("timm_mvhybrid::ssd_scan_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    implementation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with autocast_disabled(x.device.type):
        grads = _module(implementation, x).backward(
            grad_y, grad_last_state, states, x, dt, A, B, C, D, dt_bias, dt_softplus, reverse
        )
    return tuple(grad.contiguous() for grad in grads)


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    implementation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    optional = [x.new_empty(0) if v is None else v.new_empty(v.shape) for v in (D, dt_bias)]
    return (*(v.new_empty(v.shape) for v in (x, dt, A, B, C)), *optional)  # type: ignore[return-value]


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, bool, bool, str, bool
    ],
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    *tensors, dt_softplus, save_states, implementation, reverse = inputs
    if not save_states:
        raise RuntimeError(
            "timm_mvhybrid::ssd_scan was called with save_states=False on tensors that need a gradient; "
            "pass save_states=True"
        )
    ctx.save_for_backward(output[2], *tensors)  # type: ignore[arg-type]  # None is allowed
    ctx.dt_softplus, ctx.reverse = dt_softplus, reverse  # type: ignore[attr-defined]
    # what forward ran, for the states are that implementation's, whatever is requested by then
    ctx.implementation = _chosen(implementation, inputs[0])  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx,
    grad_y: Tensor | None,
    grad_last_state: Tensor | None,
    _grad_states: Tensor | None,
) -> tuple[Tensor | None, ...]:
    states, x, *others = ctx.saved_tensors  # type: ignore[attr-defined]
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    grads = torch.ops.timm_mvhybrid.ssd_scan_backward(
        grad_y,
        grad_last_state,
        states,
        x,
        *others,
        ctx.dt_softplus,  # type: ignore[attr-defined]
        ctx.implementation,  # type: ignore[attr-defined]
        ctx.reverse,  # type: ignore[attr-defined]
    )
    present = [None if v is None else grad for v, grad in zip((x, *others), grads, strict=True)]
    return (*present, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
