"""peft's adapted linear layer with the adapter in few passes over memory: in place, and its dropout drawn twice.

As peft writes it, an adapter makes three tensors of the size of the layer's output and keeps two of the size of its
input, the noise and what it leaves, so that a step takes as long as one of all weights, and a third more memory. Here the
product is added in place, and the noise is drawn again from its seed in the backward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..ops.precision import autocast_disabled
from ..ops.transforms import wants_portable_form

_LEVELS = 1 << 16


def speed_up(model: nn.Module) -> None:
    """Gives the adapted linear layers of a peft model the fast forward, in place; all else of them stays peft's."""
    from peft.tuners.lora import Linear

    own: Any = Linear
    for module in model.modules():
        if type(module) is own and isinstance(module.get_base_layer(), nn.Linear):
            module.__class__ = _fast_class(own)


@functools.cache
def _fast_class(own: Any) -> Any:
    return type("FastLoraLinear", (_FastForward, own), {"__module__": __name__})


# what the class stands in front of: peft's layer, whose attributes are its own
_Module: Any = nn.Module


class _FastForward(_Module):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Adds the adapter's output to the layer's, or does what peft does where there is more to it than that."""
        names = self.active_adapters
        if (
            args
            or kwargs
            or self.disable_adapters
            or self.merged
            or len(names) != 1
            or not self._is_plain(names[0])
        ):
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x).contiguous()
        name = names[0]
        dropout = self.lora_dropout[name]
        p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        weights = self.lora_A[name].weight, self.lora_B[name].weight
        return _AddLowRank.apply(result, x, *weights, float(self.scaling[name]), p)

    def _is_plain(self, name: str) -> bool:
        """Whether an adapter is a product of two matrices and nothing else, and this is no graph of operations."""
        return (
            name in self.lora_A
            and name not in getattr(self, "lora_variant", {})
            and not getattr(self, "use_dora", {}).get(name, False)
            and self.lora_B[name].bias is None
            and isinstance(self.lora_dropout[name], nn.Dropout | nn.Identity)
            and not torch.compiler.is_compiling()
            and not wants_portable_form()
        )


class _AddLowRank(torch.autograd.Function):
    """y + s / (1 − p) · (m ∘ x) Aᵀ Bᵀ with a mask m that is 0 with probability p, overwriting y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, p: float) -> Tensor:
        threshold = round(p * _LEVELS)
        ctx.scale, ctx.threshold = scale * _LEVELS / (_LEVELS - threshold), threshold
        # of the generator that a step seeds, on the CPU, so that nothing waits for a GPU
        ctx.seed = int(torch.randint(1 << 62, ())) if threshold else 0
        with autocast_disabled(x.device.type):
            rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
            if threshold:
                rows = rows * _kept(rows, threshold, ctx.seed)
            inner = rows @ A.to(y.dtype).T
            # frozen layers save nothing, so that nobody else needs y as it was
            ctx.mark_dirty(y)
            y.view(-1, y.shape[-1]).addmm_(inner, B.to(y.dtype).T, alpha=ctx.scale)
        ctx.save_for_backward(x, A, B, inner)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, None, None]:
        x, A, B, inner = ctx.saved_tensors
        with autocast_disabled(x.device.type):
            flat = grad.reshape(-1, grad.shape[-1])
            # with the narrow matrix first: the other way round takes a CPU four times as long
            grad_inner = (B.to(grad.dtype).T @ flat.T).mul_(ctx.scale).T
            grad_B = (inner.T @ flat).mul_(ctx.scale).T
            rows = x.reshape(-1, x.shape[-1]).to(grad.dtype)
            kept = _kept(rows, ctx.threshold, ctx.seed) if ctx.threshold else None
            grad_A = grad_inner.T @ (rows if kept is None else rows * kept)
            grad_x = None
            if ctx.needs_input_grad[1]:
                grad_x = grad_inner @ A.to(grad.dtype)
                if kept is not None:
                    grad_x.mul_(kept)
                grad_x = grad_x.view(x.shape).to(x.dtype)
        return grad, grad_x, grad_A.to(A.dtype), grad_B.to(B.dtype), None, None


def _kept(like: Tensor, threshold: int, seed: int) -> Tensor:
    """Draws what is kept, 1, and dropped, 0: the latter in ``threshold`` of 65,536 places on average.

    Four numbers of 16 bits are cut from each draw of 64, because drawing is what takes the time on a CPU; and the result
    is a factor, because filling by a bool mask takes ten times as long as a product there.
    """
    generator = torch.Generator(like.device).manual_seed(seed)
    draws = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    draws.random_(-(1 << 63), None, generator=generator)
    bits = draws.view(torch.int16)[: like.numel()].view(like.shape)
    # all of them are exact in float32
    return bits.float().ge_(threshold - _LEVELS // 2).to(like.dtype)
