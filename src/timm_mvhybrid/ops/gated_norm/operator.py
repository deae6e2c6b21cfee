"""The gated norm as registered operators, ``torch.ops.timm_mvhybrid.gated_norm`` and ``gated_norm_``."""

import torch
from torch import Tensor

from ..precision import accumulation_dtype, autocast_disabled
from . import cpu


@torch.library.custom_op("timm_mvhybrid::gated_norm_", mutates_args=("y",))
def _forward_(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> None:
    if not y.is_contiguous():
        raise ValueError(
            f"timm_mvhybrid::gated_norm_ overwrites y, which must be contiguous; it has strides {y.stride()}"
        )
    with autocast_disabled(y.device.type):
        cpu.forward(y, z, weight, eps, y)


@_forward_.register_fake
def _(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> None:
    return None


@torch.library.custom_op("timm_mvhybrid::gated_norm", mutates_args=())
def _forward(y: Tensor, z: Tensor, weight: Tensor, eps: float, save: bool) -> tuple[Tensor, Tensor]:
    out = y.new_empty(y.shape)
    with autocast_disabled(y.device.type):
        scale = cpu.forward(y, z, weight, eps, out)
    return out, scale if save else scale.new_empty(0, 1)


@_forward.register_fake
def _(y: Tensor, z: Tensor, weight: Tensor, eps: float, save: bool) -> tuple[Tensor, Tensor]:
    tokens = y.shape[:-1].numel() if save else 0
    return y.new_empty(y.shape), y.new_empty([tokens, 1], dtype=accumulation_dtype(y.dtype))


@torch.library.custom_op("timm_mvhybrid::gated_norm_backward", mutates_args=())
def _backward(
    grad: Tensor, scale: Tensor, y: Tensor, z: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    with autocast_disabled(y.device.type):
        return cpu.backward(grad, scale, y, z, weight)


@_backward.register_fake
def _(grad: Tensor, scale: Tensor, y: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return y.new_empty(y.shape), z.new_empty(z.shape), weight.new_empty(weight.shape)


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, float, bool],
    output: tuple[Tensor, Tensor],
) -> None:
    y, z, weight, _, save = inputs
    if not save:
        raise RuntimeError(
            "timm_mvhybrid::gated_norm was called with save=False on tensors that need a gradient; pass save=True"
        )
    ctx.save_for_backward(output[1], y, z, weight)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor | None, _grad_scale: Tensor | None
) -> tuple[Tensor | None, ...]:
    scale, y, z, weight = ctx.saved_tensors  # type: ignore[attr-defined]
    if grad is None:
        grad = torch.zeros_like(y)
    grads = torch.ops.timm_mvhybrid.gated_norm_backward(grad, scale, y, z, weight)
    return (*grads, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
