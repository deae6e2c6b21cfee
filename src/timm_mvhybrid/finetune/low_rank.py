"""peft's adapted linear layer with the adapter in few passes over memory: in place, and its dropout drawn twice.

As peft writes it, an adapter makes three tensors of the size of the layer's output and keeps two of the size of its
input, the noise and what it leaves, so that a step takes as long as one of all weights, and a third more memory. Here the
layer and its adapter are one function: products are added in place, the noise is drawn again from its seed in the backward
pass, and a few rows are worked on at a time, so that what is made of them stays in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..layers.step_size import StepProjection
from ..ops.fused.rows import compiled_kernels
from ..ops.transforms import wants_portable_form

_LEVELS = 1 << 16
_PART_ELEMENTS = 1 << 17
"""Elements of a part of a layer's input on a CPU."""


def speed_up(model: nn.Module) -> None:
    """Gives the adapted linear layers of a peft model the fast forward, in place; all else of them stays peft's."""
    from peft.tuners.lora import Linear

    own: Any = Linear
    fast = _fast_class(own)
    module: Any
    for module in model.modules():
        if type(module) is own and isinstance(module.get_base_layer(), nn.Linear):
            module.__class__ = fast


@functools.cache
def _fast_class(own: Any) -> Any:
    return type("FastLoraLinear", (_FastForward, own), {"__module__": __name__})


# what the class stands in front of: peft's layer, whose attributes are its own
_Module: Any = nn.Module


class _FastForward(_Module):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Adds the adapter's output to the layer's, or does what peft does where there is more to it than that."""
        names = self.active_adapters
        if args or kwargs or self.disable_adapters or self.merged or len(names) != 1:
            return super().forward(x, *args, **kwargs)
        if not self._is_plain(names[0], x):
            return super().forward(x)
        name, base = names[0], self.base_layer
        dropout = self.lora_dropout[name]
        p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        # the bias of step sizes acts later
        bias = None if isinstance(base, StepProjection) else base.bias
        weights = base.weight, bias, self.lora_A[name].weight, self.lora_B[name].weight
        return _AdaptedLinear.apply(x, *weights, float(self.scaling[name]), p)

    def _is_plain(self, name: str, x: Tensor) -> bool:
        """Whether an adapter is a product of two matrices and nothing else, and this is no graph of operations."""
        base = self.base_layer
        return (
            type(base) in (nn.Linear, StepProjection)
            and not (base.weight.requires_grad or base._forward_hooks or base._forward_pre_hooks)
            # autocast keeps casts of weights from one call to the next; and all are of one dtype
            and not torch.is_autocast_enabled(x.device.type)
            and name in self.lora_A
            and x.dtype == base.weight.dtype == self.lora_A[name].weight.dtype
            and name not in getattr(self, "lora_variant", {})
            and not getattr(self, "use_dora", {}).get(name, False)
            and self.lora_B[name].bias is None
            and isinstance(self.lora_dropout[name], nn.Dropout | nn.Identity)
            and not torch.compiler.is_compiling()
            and not wants_portable_form()
        )


class _AdaptedLinear(torch.autograd.Function):
    """x Wᵀ + b + s / (1 − p) · (m ∘ x) Aᵀ Bᵀ with a mask m that is 0 with probability p; W and b need no gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float, p: float
    ) -> Tensor:
        threshold = round(p * _LEVELS)
        ctx.scale, ctx.threshold = scale * _LEVELS / (_LEVELS - threshold), threshold
        # of the generator that a step seeds, on the CPU, so that nothing waits for a GPU
        ctx.seed = int(torch.randint(1 << 62, ())) if threshold else 0
        rows = x.reshape(-1, x.shape[-1])
        ctx.kernels = compiled_kernels(f"{__package__}.low_rank_kernels", rows)
        if ctx.kernels is not None:
            y, inner = ctx.kernels.start_of(rows, b, A, B, ctx.scale, ctx.seed, threshold)
            # the layer's product last: then it is the only one that reads what others wrote
            y.addmm_(rows, W.T)
            ctx.save_for_backward(x, W, A, B, inner)
            return y.view(*x.shape[:-1], len(W))
        y = F.linear(rows, W, b)
        inner = rows.new_empty(len(rows), len(A))
        for part, kept in _parts(rows, threshold, ctx.seed):
            torch.mm(rows[part] if kept is None else rows[part] * kept, A.T, out=inner[part])
        y.addmm_(inner, B.T, alpha=ctx.scale)
        ctx.save_for_backward(x, W, A, B, inner)
        return y.view(*x.shape[:-1], len(W))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None, None]:
        x, W, A, B, inner = ctx.saved_tensors
        flat, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.kernels is not None:
            grad_A, grad_B, grad_x = ctx.kernels.gradients(
                flat, rows, A, B, inner, ctx.scale, ctx.seed, ctx.threshold, needs_x=ctx.needs_input_grad[0]
            )
            grad_x = None if grad_x is None else grad_x.addmm_(flat, W).view(x.shape)
            return grad_x, None, None, grad_A, grad_B, None, None
        # with the narrow matrix first: the other way round takes a CPU four times as long
        grad_inner = (B.T @ flat.T).mul_(ctx.scale)
        grad_B = (inner.T @ flat).mul_(ctx.scale).T
        grad_A = torch.zeros_like(A)
        grad_x = flat @ W if ctx.needs_input_grad[0] else None
        for part, kept in _parts(rows, ctx.threshold, ctx.seed):
            own = grad_inner[:, part]
            grad_A.addmm_(own, rows[part] if kept is None else rows[part] * kept)
            if grad_x is not None and kept is None:
                grad_x[part].addmm_(own.T, A)
            elif grad_x is not None:
                grad_x[part].addcmul_(own.T @ A, kept)
        return (None if grad_x is None else grad_x.view(x.shape)), None, None, grad_A, grad_B, None, None


def _parts(rows: Tensor, threshold: int, seed: int) -> Iterator[tuple[slice, Tensor | None]]:
    """Cuts rows into parts, and draws of each what is kept; the same parts and draws for the same seed."""
    generator = torch.Generator(rows.device).manual_seed(seed) if threshold else None
    length = len(rows) if rows.device.type != "cpu" else max(1, _PART_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), max(length, 1)):
        part = slice(start, start + length)
        yield part, None if generator is None else _kept(rows[part], threshold, generator)


def _kept(like: Tensor, threshold: int, generator: torch.Generator) -> Tensor:
    """Draws what is kept, 1, and dropped, 0: the latter in ``threshold`` of 65,536 places on average.

    Four numbers of 16 bits are cut from each draw of 64, because drawing is what takes the time on a CPU; and the result
    is a factor, because filling by a bool mask takes ten times as long as a product there.
    """
    draws = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    draws.random_(-(1 << 63), None, generator=generator)
    bits = draws.view(torch.int16)[: like.numel()].view(like.shape)
    # all of them are exact in float32
    return bits.float().ge_(threshold - _LEVELS // 2).to(like.dtype)
