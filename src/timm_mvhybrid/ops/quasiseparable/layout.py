"""Layouts of the tokens, B and C that Hydra's matrix is multiplied in, and the memory that they are copied to."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..workspace import scratch
from .steps import Sizes

PART_ELEMENTS = 1 << 19
"""Elements of one work buffer; on a CPU a larger batch is worked off in parts of this size."""


class Rooms:
    """Scratch memory by name, cut to the shape at hand."""

    def __init__(self, like: Tensor, shapes: dict[str, Sequence[int]]) -> None:
        self._starts: dict[str, int] = {}
        end = 0
        for name, shape in shapes.items():
            self._starts[name] = end
            # so that every room starts on a cache line
            end += -(-math.prod(shape) // 16) * 16
        (self._memory,) = scratch(like, (end,))

    def take(self, name: str, *shape: int) -> Tensor:
        """Returns a contiguous tensor of ``shape``, no larger than the room, that starts where the room does."""
        start = self._starts[name]
        return self._memory[start : start + math.prod(shape)].view(shape)


def head_major(tokens: Tensor, out: Tensor) -> Tensor:
    """Copies (rows, length, heads, headdim) into (rows, chunks, heads, steps, headdim), zeros after the end."""
    length, steps = tokens.shape[1], out.shape[3]
    whole = length // steps
    out[:, :whole] = tokens[:, : whole * steps].unflatten(1, (whole, steps)).transpose(2, 3)
    rest = length - whole * steps
    if rest:
        out[:, whole, :, :rest] = tokens[:, whole * steps :].transpose(1, 2)
        out[:, whole, :, rest:] = 0
    return out


def token_major(values: Tensor, out: Tensor) -> None:
    """Inverts :func:`head_major`."""
    length, steps = out.shape[1], values.shape[3]
    whole = length // steps
    out[:, : whole * steps].unflatten(1, (whole, steps)).copy_(values[:, :whole].transpose(2, 3))
    rest = length - whole * steps
    if rest:
        out[:, whole * steps :] = values[:, whole, :, :rest].transpose(1, 2)


def group_matrices(B: Tensor, C: Tensor, size: Sizes, rooms: Rooms) -> tuple[Tensor, Tensor]:
    """Brings B, and C shifted to the tokens that read it, into (2, rows, chunks, groups, steps, d_state)."""
    rows, length = B.shape[:2]
    shape = (2, rows, size.length + size.missing, size.groups, size.d_state)
    b, c = rooms.take("B", *shape), rooms.take("C", *shape)
    b[:, :, :length] = B.permute(2, 0, 1, 3, 4)
    if size.missing:
        b[:, :, length:] = 0
    # the first token reads no state of the forward direction, the last one none of the backward direction
    c.zero_()
    c[0, :, 1:length] = C[:, :-1, 0]
    c[1, :, : length - 1] = C[:, 1:, 1]
    b, c = (m.unflatten(2, (size.chunks, size.steps)).transpose(3, 4).contiguous() for m in (b, c))
    return b, c


def carried_chunks(direction: int) -> tuple[slice, slice]:
    """Which chunks make the states of a direction, and which are reached by them; the first by the first."""
    but_last, but_first = slice(None, -1), slice(1, None)
    return (but_first, but_last) if direction else (but_last, but_first)


def group_tokens(tokens: Tensor, factors: Tensor, out: Tensor) -> Tensor:
    """Turns (rows, chunks, heads, steps, headdim) into (rows, chunks, groups, steps, heads a group · headdim).

    Multiplies by ``factors``, (rows, chunks, heads, steps), on the way.
    """
    torch.mul(
        tokens.unflatten(2, (out.shape[2], -1)).transpose(3, 4),
        factors.unflatten(2, (out.shape[2], -1)).transpose(3, 4).unsqueeze(-1),
        out=out.unflatten(-1, (-1, tokens.shape[-1])),
    )
    return out


def add_group_tokens(tokens: Tensor, values: Tensor, factors: Tensor) -> None:
    """Adds to head-major tokens what :func:`group_tokens` lays out as its result, times factors."""
    by_head = values.unflatten(-1, (-1, tokens.shape[-1])).transpose(3, 4)
    tokens.unflatten(2, (values.shape[2], -1)).addcmul_(
        by_head, factors.unflatten(2, (values.shape[2], -1)).unsqueeze(-1)
    )
