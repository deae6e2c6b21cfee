"""Scratch memory of the CPU operators, kept from call to call, and the parts of a batch that share it.

The C library hands large freed blocks back to the system, and each page of a fresh one costs a fault of microseconds
when it is first written, which for a scan of 8 × 257 × 384 takes longer than the arithmetic. Every thread keeps what
its largest call needed, up to a limit.
"""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

KEPT_BYTES = 32 << 20
"""Most that a thread keeps; larger scratch is allocated for the call."""


class _Kept(threading.local):
    def __init__(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)


_kept = _Kept()
# so that every piece starts on a cache line
_ALIGNMENT = 64


def scratch(like: Tensor, *shapes: Sequence[int]) -> list[Tensor]:
    """Returns uninitialised tensors that are valid until the thread's next call of this function.

    Only for use inside an operator: none of it may be returned, and no operator that takes scratch may run while that
    of another is in use.

    Args:
        like: Whose dtype and device they have.
        *shapes: One shape for each tensor.
    """
    sizes = [math.prod(shape) * like.element_size() for shape in shapes]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    if like.device.type != "cpu" or starts[-1] > KEPT_BYTES:
        return [like.new_empty(shape) for shape in shapes]
    if _kept.bytes.numel() < starts[-1]:
        _kept.bytes = torch.empty(starts[-1], dtype=torch.uint8)
    return [
        _kept.bytes[start : start + size].view(like.dtype).view(shape)
        for start, size, shape in zip(starts, sizes, shapes, strict=False)
    ]


def cut_batch(x: Tensor, elements: int, row_elements: int | None = None) -> tuple[list[slice], int]:
    """Cuts the first axis into parts that are worked off one after the other, so that their work stays in the cache.

    Devices other than CPUs take it whole.

    Args:
        x: The batch.
        elements: Elements of one work buffer.
        row_elements: Elements that a row takes of it; None for those of ``x``.

    Returns:
        The parts, of at least one row each, and the rows of the largest, at least one.
    """
    count = x.shape[0]
    rows = max(1, count)
    if x.device.type == "cpu":
        rows = max(1, min(rows, elements // max(1, row_elements or x.shape[1:].numel())))
    return [slice(first, min(first + rows, count)) for first in range(0, count, rows)], rows
