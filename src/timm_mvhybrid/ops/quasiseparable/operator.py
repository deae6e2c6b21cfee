"""Hydra's matrix as a registered operator, ``torch.ops.timm_mvhybrid.quasiseparable``, and its backward."""

import torch
from torch import Tensor

from ..implementation import choose, load
from ..precision import accumulation_dtype, autocast_disabled
from . import composed, cpu, cpu_backward


def _chosen(implementation: str, x: Tensor) -> str:
    """Names the scan that runs for an input; a pure function of its arguments unless they say ``current``."""
    return choose("ssd_scan", implementation, x.device.type, x.dtype)


@torch.library.custom_op("timm_mvhybrid::quasiseparable", mutates_args=())
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor,
    diagonal: Tensor,
    save_states: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    chosen = _chosen(implementation, x)
    arguments = (x, dt, A, B, C, dt_bias, diagonal, save_states)
    with autocast_disabled(x.device.type):
        if chosen == "cpu":
            return cpu.forward(*arguments)
        return composed.forward(load("ssd_scan", chosen), *arguments)


@_forward.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor,
    diagonal: Tensor,
    save_states: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    chosen = _chosen(implementation, x)
    shape = cpu.saved_shape(x, B, save_states)
    if chosen != "cpu":
        batch, length, heads, headdim = x.shape
        chunks = load("ssd_scan", chosen).num_chunks(length) if save_states else 0
        shape = [2, chunks, batch, heads, headdim, B.shape[-1]]
    return x.new_empty(x.shape), x.new_empty(shape, dtype=accumulation_dtype(x.dtype))


@torch.library.custom_op("timm_mvhybrid::quasiseparable_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor,
    diagonal: Tensor,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    chosen = _chosen(implementation, x)
    arguments = (grad_y, states, x, dt, A, B, C, dt_bias, diagonal)
    with autocast_disabled(x.device.type):
        if chosen == "cpu":
            grads = cpu_backward.backward(*arguments)
        else:
            grads = composed.backward(load("ssd_scan", chosen), *arguments)
    return tuple(grad.contiguous() for grad in grads)  # type: ignore[return-value]


@_backward.register_fake
def _(
    grad_y: Tensor,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor,
    diagonal: Tensor,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tuple(v.new_empty(v.shape) for v in (x, dt, A, B, C, dt_bias, diagonal))  # type: ignore[return-value]


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, str],
    output: tuple[Tensor, Tensor],
) -> None:
    *tensors, save_states, implementation = inputs
    if not save_states:
        raise RuntimeError(
            "timm_mvhybrid::quasiseparable was called with save_states=False on tensors that need a gradient; "
            "pass save_states=True"
        )
    ctx.save_for_backward(output[1], *tensors)
    # what forward ran, for the states are that implementation's, whatever is requested by then
    ctx.implementation = _chosen(implementation, inputs[0])  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad_y: Tensor | None, _grad_states: Tensor | None
) -> tuple[Tensor | None, ...]:
    states, x, *others = ctx.saved_tensors  # type: ignore[attr-defined]
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    grads = torch.ops.timm_mvhybrid.quasiseparable_backward(
        grad_y,
        states,
        x,
        *others,
        ctx.implementation,  # type: ignore[attr-defined]
    )
    return (*grads, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
