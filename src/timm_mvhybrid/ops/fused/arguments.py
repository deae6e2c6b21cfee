"""What a fused kernel is given: tensors as it reads them, their addresses and strides, and the tasks that work is cut into."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .lanes import LANES


def kernel_name(computed: torch.dtype) -> str:
    """Names the kernel that computes in a dtype, as in ``make_NAME``."""
    return "float64" if computed == torch.float64 else "float32"


def kernel_dtype(dtype: torch.dtype, computed: torch.dtype) -> torch.dtype:
    """Returns the dtype in which a kernel reads or writes tokens: what it computes in, or bfloat16 for float32."""
    return dtype if dtype == torch.bfloat16 and computed == torch.float32 else computed


def readable(tokens: Tensor, computed: torch.dtype) -> Tensor:
    """Brings tokens (batch, length, d_inner) into a form that a kernel reads: neighbouring channels side by side."""
    tokens = tokens.to(kernel_dtype(tokens.dtype, computed))
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def plain(values: Tensor, computed: torch.dtype) -> Tensor:
    """Brings a tensor into the dtype that is computed in, contiguous."""
    return values.to(computed).contiguous()


def address(values: Tensor | None) -> int:
    """Returns where a tensor is; 0 stands for none."""
    return 0 if values is None else values.data_ptr()


def place(tokens: Tensor | None) -> Sequence[int]:
    """Returns address, and bytes of a number, a row of the batch and a token; zeros stand for none."""
    if tokens is None:
        return (0, 0, 0, 0)
    size = tokens.element_size()
    return (tokens.data_ptr(), size, tokens.stride(0) * size, tokens.stride(1) * size)


def blocks_of(channels: int) -> int:
    """Returns how many blocks of ``LANES`` channels hold so many of them."""
    return -(-channels // LANES)


def parts_of(batch: int, blocks: int) -> tuple[int, int]:
    """Cuts the channels of a row of the batch where there are fewer rows than threads.

    Args:
        batch: Rows.
        blocks: Blocks of channels of a row.

    Returns:
        Parts of a row, each one task, and the blocks of each; the last may have fewer.
    """
    threads = torch.get_num_threads()
    parts = 1 if batch >= threads else min(blocks, -(-2 * threads // max(1, batch)))
    part_blocks = -(-blocks // parts)
    return -(-blocks // part_blocks), part_blocks
