"""Rules of torch's functions: what directions share is computed once, and they move in as few passes as can be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp

from .dual import Dual, ForwardModeError, rule

# narrower ones are widened inside of torch's functions, and rounded where these do
_DTYPES = (torch.float32, torch.float64)


def _alone(x: Any, *others: Any) -> bool:
    """Whether the first argument of a function moves, and no other."""
    return isinstance(x, Dual) and not any(isinstance(other, Dual) for other in others)


@rule(F.linear)
def _linear(input: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not _alone(input, weight, bias):
        return NotImplemented
    return Dual(F.linear(input.primal, weight, bias), F.linear(input.tangents, weight))


@rule(F.conv2d)
def _conv2d(input: Any, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    if not _alone(input, weight, bias) or input.ndim != 4:
        return NotImplemented
    # directions are a batch
    moved = F.conv2d(input.tangents.flatten(0, 1), weight, None, *args, **kwargs)
    value = F.conv2d(input.primal, weight, bias, *args, **kwargs)
    return Dual(value, moved.unflatten(0, (-1, len(value))))


def _elementwise(function: Callable[..., Tensor], input: Any, *args: Any, **kwargs: Any) -> Any:
    """A function of each number alone: one slope for all directions."""
    in_place = kwargs.pop("inplace", False)
    if not _alone(input, *args, *kwargs.values()):
        return NotImplemented
    if in_place and input.tangents.stride(0) == 0 and len(input.tangents) > 1:
        raise ForwardModeError(f"{function.__name__} changes in place what is the same for all directions")
    x = input.primal
    value, slope, *_ = jvp(lambda at: function(at, *args, **kwargs), (x,), (torch.ones_like(x),))
    if in_place:
        x.copy_(value)
        input.tangents.mul_(slope)
        return input
    return Dual(value, input.tangents * slope)


for _function in (F.gelu, F.silu):
    rule(_function)(functools.partial(_elementwise, _function))


@rule(F.layer_norm)
def _layer_norm(
    input: Any,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """With y = γ x̂ + β and x̂ = (x − mean) r: ẏ = γ r (ẋ − mean(ẋ) − x̂ mean(x̂ ẋ))."""
    if not _alone(input, weight, bias) or len(normalized_shape) != 1 or input.dtype not in _DTYPES:
        return NotImplemented
    x = input.primal
    value, mean, scale = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)
    normed = (x - mean) * scale
    gain = scale if weight is None else scale * weight
    moved = torch.empty_like(input.tangents, memory_format=torch.contiguous_format)
    # a direction at a time, which stays in the cache
    for tangent, out in zip(input.tangents, moved, strict=True):
        torch.mul(tangent, normed, out=out)
        along = out.mean(-1, keepdim=True)
        torch.sub(tangent, tangent.mean(-1, keepdim=True), out=out)
        out.addcmul_(normed, along, value=-1.0).mul_(gain)
    return Dual(value, moved)


@rule(F.scaled_dot_product_attention)
def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """With O = P V and P = softmax(S): Ȯ = P V̇ + Ṗ V, Ṗ = P ∘ (Ṡ − Σ P ∘ Ṡ), the sum over the keys."""
    if not all(isinstance(x, Dual) for x in (query, key, value)):
        return NotImplemented
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or query.dtype not in _DTYPES:
        return NotImplemented
    if query.ndim < 3 or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return NotImplemented
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    q, k, v = (x.primal.flatten(0, -3) for x in (query, key, value))
    moves = [x.tangents.flatten(1, -3) for x in (query, key, value)]
    q = q * scale
    attending = torch.bmm(q, k.mT).softmax(-1)
    moved = q.new_empty(*moves[0].shape[:-1], v.shape[-1])
    scores = torch.empty_like(attending)
    for q_moved, k_moved, v_moved, out in zip(*moves, moved, strict=True):
        torch.bmm(q_moved, k.mT, out=scores)
        torch.baddbmm(scores, q, k_moved.mT, beta=scale, out=scores).mul_(attending)
        scores.addcmul_(attending, scores.sum(-1, keepdim=True), value=-1.0)
        torch.bmm(scores, v, out=out).baddbmm_(attending, v_moved)
    shape = (*query.shape[:-1], value.shape[-1])
    return Dual(torch.bmm(attending, v).view(shape), moved.view(-1, *shape))
