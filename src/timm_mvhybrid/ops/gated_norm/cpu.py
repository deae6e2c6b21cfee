"""The gated norm part by part, in memory that stays in the cache; with its gradient."""

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..workspace import cut_batch, scratch

PART_ELEMENTS = 1 << 18
"""Elements of one work buffer; more tokens are worked off in parts of this size."""


def forward(y: Tensor, z: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """Writes the gated norm.

    ``out`` is contiguous, of the shape of ``y``, which it may be; the others are as for :func:`.gated_norm`.

    Returns:
        1 / √(mean(y²) + eps), (tokens, 1), in the accumulation dtype.
    """
    dtype = accumulation_dtype(y.dtype)
    y, z, out = _by_token(y), _by_token(z), _by_token(out)
    weight = weight.to(dtype)
    scale = y.new_empty(len(y), 1, dtype=dtype)
    parts, most_rows = cut_batch(y, PART_ELEMENTS)
    rooms = scratch(scale, *[(most_rows, y.shape[1])] * 2)
    for rows in parts:
        values, gate = (_widened(v[rows], room) for v, room in zip((y, z), rooms, strict=True))
        gated = rooms[1][: len(values)]
        torch.ops.aten.silu.out(gate, out=gated)
        torch.linalg.vector_norm(values, dim=-1, keepdim=True, out=scale[rows])
        scale[rows].square_().div_(y.shape[-1]).add_(eps).rsqrt_()
        gated.mul_(values).mul_(scale[rows])
        _write(gated, weight, out[rows])
    return scale


def backward(
    grad: Tensor, scale: Tensor, y: Tensor, z: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiates :func:`forward`.

    With n = y · scale and ḡ the gradient of n, which is grad · weight · silu(z)::

        dy = scale (ḡ − n mean(ḡ n)),    dz = grad · weight · n · silu'(z),    dweight = Σ grad · n · silu(z)

    ``scale`` is what forward returned. Returns the gradients of y, z and weight in their dtypes.
    """
    dtype = scale.dtype
    grad_y, grad_z = y.new_empty(y.shape), z.new_empty(z.shape)
    grad_weight, factor = scale.new_zeros(weight.shape), weight.to(dtype)
    grad, y, z, to_y, to_z = (_by_token(v) for v in (grad, y, z, grad_y, grad_z))
    parts, most_rows = cut_batch(y, PART_ELEMENTS)
    rooms = scratch(scale, *[(most_rows, y.shape[1])] * 6)
    for rows in parts:
        grad_out, values, gate = (
            _widened(v[rows], room) for v, room in zip((grad, y, z), rooms[:3], strict=True)
        )
        normed, gated, product = (room[: len(values)] for room in rooms[3:])
        torch.mul(values, scale[rows], out=normed)
        torch.ops.aten.silu.out(gate, out=gated)
        # ḡ · n, once without weight for the weight's own gradient
        gated.mul_(grad_out)
        torch.mul(gated, normed, out=product)
        grad_weight += product.sum(0)
        mean = product.mul_(factor).mean(-1, keepdim=True)
        torch.mul(grad_out, factor, out=product).mul_(normed)
        if z.dtype == dtype:
            torch.ops.aten.silu_backward.grad_input(product, gate, grad_input=to_z[rows])
        else:
            torch.ops.aten.silu_backward.grad_input(product, gate, grad_input=product)
            to_z[rows] = product
        gated.mul_(factor).addcmul_(normed, mean, value=-1.0)
        _write(gated, scale[rows], to_y[rows])
    return grad_y, grad_z, grad_weight.to(weight.dtype)


def _by_token(values: Tensor) -> Tensor:
    """Views (..., channels) as (tokens, channels); what cannot be viewed so is copied."""
    return values.reshape(values.shape[:-1].numel(), values.shape[-1])


def _widened(values: Tensor, room: Tensor) -> Tensor:
    """Copies values into scratch memory of the accumulation dtype, unless they have that dtype."""
    return values if values.dtype == room.dtype else room[: len(values)].copy_(values)


def _write(values: Tensor, factor: Tensor, out: Tensor) -> None:
    """Multiplies scratch memory by a factor, into ``out`` of any dtype."""
    if out.dtype == values.dtype:
        torch.mul(values, factor, out=out)
    else:
        out.copy_(values.mul_(factor))
