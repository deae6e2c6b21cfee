"""The two orders of tokens: timm's, prefix first, and the scan's, prefix in the middle.

A state-space mixer reads the sequence as the image is read, row by row, so a class token that should receive all of it
is in the middle: n // 2 patches before it, the others after. Callers never see this order.
Source: MV_Hybrid (arXiv 2508.00383) and Vision Mamba (arXiv 2401.09417).
"""

import torch
from torch import Tensor


def to_scan_order(x: Tensor, num_prefix_tokens: int) -> Tensor:
    """Moves the prefix tokens from the front to just after the first half of the patches.

    Args:
        x: Tokens in timm's order, (batch, num_prefix_tokens + n, dim).
        num_prefix_tokens: Class and register tokens; they stay together, the class token first.

    Returns:
        Tokens in scan order, of the same shape; the class token has index n // 2.
    """
    if num_prefix_tokens == 0:
        return x
    middle = num_prefix_tokens + (x.shape[1] - num_prefix_tokens) // 2
    return torch.cat([x[:, num_prefix_tokens:middle], x[:, :num_prefix_tokens], x[:, middle:]], dim=1)


def to_timm_order(x: Tensor, num_prefix_tokens: int) -> Tensor:
    """Moves the prefix tokens back to the front; the inverse of :func:`to_scan_order`."""
    if num_prefix_tokens == 0:
        return x
    first = (x.shape[1] - num_prefix_tokens) // 2
    last = first + num_prefix_tokens
    return torch.cat([x[:, first:last], x[:, :first], x[:, last:]], dim=1)


def in_order(x: Tensor, num_prefix_tokens: int, scan: bool) -> Tensor:
    """Brings tokens from timm's order into the scan's, or from the scan's into timm's; scriptable."""
    return to_scan_order(x, num_prefix_tokens) if scan else to_timm_order(x, num_prefix_tokens)
