"""The selective scan in forward mode: its states once, and how they move along all directions, in one kernel of numba."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp

from ..forward_mode import Dual, rule
from ..implementation import requested_implementation, why_not
from ..step_sizes import biased_steps, softplus_slope, step_sizes
from .portable import selective_scan_portable

_DTYPES = (torch.float32, torch.float64)


@rule(selective_scan_portable)
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool = False,
) -> Any:
    """Runs the kernel where the scan itself would run as one of numba, and leaves the rest to torch.func."""
    moving = (u, delta, B, C, z)
    if any(isinstance(weight, Dual) for weight in (A, D, delta_bias)):
        return NotImplemented
    if u.dtype not in _DTYPES or any(x is not None and x.dtype != u.dtype for x in moving):
        return NotImplemented
    if u.numel() == 0 or requested_implementation() not in ("auto", "numba"):
        return NotImplemented
    if why_not("selective_scan", "numba", u.device.type, u.dtype) is not None:
        return NotImplemented
    from .numba import tangents

    number = next(len(x.tangents) for x in moving if isinstance(x, Dual))
    value, raw, b, c = (_primal(x) for x in (u, delta, B, C))
    step = step_sizes(raw, delta_bias, delta_softplus, u.dtype)
    slope = (
        softplus_slope(biased_steps(raw, delta_bias, u.dtype)) if delta_softplus else torch.ones_like(step)
    )
    y, last, y_moved, last_moved = tangents(
        (value, step, slope, A, b, c, D), [_moves(x, number) for x in (u, delta, B, C)], reverse
    )
    result: Any = Dual(y, y_moved)
    if z is not None:
        result = _gated(result, z)
    return result, Dual(last, last_moved)


def _primal(x: Tensor) -> Tensor:
    return x.primal if isinstance(x, Dual) else x


def _moves(x: Tensor, number: int) -> Tensor:
    """Returns how an argument moves, which may be not at all."""
    return x.tangents if isinstance(x, Dual) else x.new_zeros(x.shape).expand(number, *x.shape)


def _gated(y: Dual, z: Tensor) -> Dual:
    """Multiplies y by silu(z)."""
    gate = _primal(z)
    opened, slope, *_ = jvp(F.silu, (gate,), (torch.ones_like(gate),))
    moved = y.tangents.mul_(opened)
    if isinstance(z, Dual):
        moved.addcmul_(z.tangents, slope * y.primal)
    return Dual(y.primal * opened, moved)
