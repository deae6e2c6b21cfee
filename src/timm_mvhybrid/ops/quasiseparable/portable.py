"""Hydra's quasiseparable matrix in functional operations: what autograd, compilers, exporters and torch.func read."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ssd import ssd_scan_heads


def quasiseparable_portable(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, diagonal: Tensor
) -> Tensor:
    """Multiplies tokens by the matrix; arguments and result as for :func:`.quasiseparable`."""
    scanned = [
        ssd_scan_heads(
            x, dt[:, :, direction], A, B[:, :, direction], C[:, :, direction], dt_bias, direction == 1
        )
        for direction in range(2)
    ]
    return torch.addcmul(later(scanned[0]) + earlier(scanned[1]), x, diagonal.to(x.dtype).unsqueeze(-1))


def later(tokens: Tensor) -> Tensor:
    """Moves every token one place towards the end, zero first."""
    return F.pad(tokens[:, :-1], [0, 0, 0, 0, 1, 0])


def earlier(tokens: Tensor) -> Tensor:
    """Moves every token one place towards the start, zero last."""
    return F.pad(tokens[:, 1:], [0, 0, 0, 0, 0, 1])
