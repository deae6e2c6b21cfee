"""EinFFT as a registered operator, ``torch.ops.timm_mvhybrid.einfft``, and its backward."""

import torch
from torch import Tensor

from . import cpu


@torch.library.custom_op("timm_mvhybrid::einfft", mutates_args=())
def _forward(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    threshold: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.forward(x, weight_1, bias_1, weight_2, bias_2, threshold, save)


@_forward.register_fake
def _(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    threshold: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    saved = cpu.saved_shape(x, save)
    return x.new_empty(x.shape), x.new_empty([3, *saved]), x.new_empty([2, *saved], dtype=torch.bool)


@torch.library.custom_op("timm_mvhybrid::einfft_backward", mutates_args=())
def _backward(
    grad: Tensor, saved: Tensor, passed: Tensor, x: Tensor, weight_1: Tensor, weight_2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return cpu.backward(grad, saved, passed, x, weight_1, weight_2)


@_backward.register_fake
def _(
    grad: Tensor, saved: Tensor, passed: Tensor, x: Tensor, weight_1: Tensor, weight_2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        weight_1.new_empty(weight_1.shape),
        weight_1.new_empty(weight_1.shape[:-1]),
        weight_2.new_empty(weight_2.shape),
        weight_2.new_empty(weight_2.shape[:-1]),
    )


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, bool],
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    x, weight_1, _, weight_2, _, _, save = inputs
    if not save:
        raise RuntimeError(
            "timm_mvhybrid::einfft was called with save=False on tensors that need a gradient; pass save=True"
        )
    ctx.save_for_backward(*output[1:], x, weight_1, weight_2)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor | None, *_grads: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved, passed, x, weight_1, weight_2 = ctx.saved_tensors  # type: ignore[attr-defined]
    if grad is None:
        grad = torch.zeros_like(x)
    grads = torch.ops.timm_mvhybrid.einfft_backward(grad, saved, passed, x, weight_1, weight_2)
    return (*grads, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
