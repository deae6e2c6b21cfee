"""EinFFT as a registered operator, ``torch.ops.timm_mvhybrid.einfft``, and its backward."""

import torch
from torch import Tensor

from . import cpu


@torch.library.custom_op("timm_mvhybrid::einfft", mutates_args=())
def _forward(
    x: Tensor, maps_1: Tensor, bias_1: Tensor, maps_2: Tensor, bias_2: Tensor, threshold: float
) -> Tensor:
    return cpu.forward(x, maps_1, bias_1, maps_2, bias_2, threshold)


@_forward.register_fake
def _(x: Tensor, maps_1: Tensor, bias_1: Tensor, maps_2: Tensor, bias_2: Tensor, threshold: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("timm_mvhybrid::einfft_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, maps_1: Tensor, bias_1: Tensor, maps_2: Tensor, bias_2: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return cpu.backward(grad, x, maps_1, bias_1, maps_2, bias_2, threshold)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, maps_1: Tensor, bias_1: Tensor, maps_2: Tensor, bias_2: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d, e = (values.new_empty(values.shape) for values in (x, maps_1, bias_1, maps_2, bias_2))
    return a, b, c, d, e


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float],
    output: Tensor,
) -> None:
    *tensors, threshold = inputs
    ctx.save_for_backward(*tensors)
    ctx.threshold = threshold  # type: ignore[attr-defined]


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors  # type: ignore[attr-defined]
    grads = torch.ops.timm_mvhybrid.einfft_backward(grad, *tensors, ctx.threshold)  # type: ignore[attr-defined]
    return (*grads, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
