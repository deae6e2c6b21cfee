"""The state-space-duality scan in functional ATen operations alone, for exporters and the transforms of torch.func.

The block decomposition of ``cpu.py`` with all chunks in one product: only the carry between chunks is a loop.
"""

import torch
from torch import Tensor

from ..chunked_time import carry
from ..precision import accumulation_dtype, autocast_disabled
from ..step_sizes import step_sizes
from .cpu import cut_chunks


def ssd_scan_portable(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs the scan, as the registered operator does.

    Differentiable any number of times, in forward and in reverse mode, and under vmap; the batch may be symbolic, the
    length may not.

    Arguments as in :class:`.Inputs`.

    Returns:
        y in the dtype of ``x``, (batch, length, heads, headdim), and the last state, (batch, heads, headdim, d_state),
        in the accumulation dtype.
    """
    with autocast_disabled(x.device.type):
        if reverse:
            x, dt, B, C = (tokens.flip(1) for tokens in (x, dt, B, C))
        dtype = accumulation_dtype(x.dtype)
        length, groups = x.shape[1], B.shape[2]
        xf, step = x.to(dtype), step_sizes(dt, dt_bias, dt_softplus, dtype)
        values = _chunked(xf * step.unsqueeze(-1), groups)
        # B and C are shared by the heads of a group
        inputs, outputs = (_chunked(matrix.to(dtype), groups) for matrix in (B, C))
        log_decay = _chunked((step * A.to(dtype)).unsqueeze(-1), groups)

        between = _sums_between(log_decay)
        from_start = log_decay.cumsum(-2).exp()
        to_end = between[..., -1:, :].mT.exp()
        y = torch.matmul(torch.matmul(outputs, inputs.mT) * between.exp(), values)
        ends = torch.matmul((values * to_end).mT, inputs)
        starts, last_state = carry(ends, from_start[..., -1:, :])
        y = y + torch.matmul(outputs, starts.mT) * from_start
        # (batch, chunks, groups, heads a group, steps, headdim) → (batch, length, heads, headdim)
        y = y.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :length]
        if D is not None:
            y = y + xf * D.to(dtype).unsqueeze(-1)
        y = y.to(x.dtype)
        return y.flip(1) if reverse else y, last_state.squeeze(1).flatten(1, 2)


def _chunked(tokens: Tensor, groups: int) -> Tensor:
    """Cuts (batch, length, heads, width) into (batch, chunks, groups, heads a group, steps, width)."""
    return cut_chunks(tokens).transpose(2, 3).unflatten(2, (groups, -1))


def _sums_between(log_decay: Tensor) -> Tensor:
    """Sums the log-decays of steps j + 1 … i for every pair j ≤ i; −∞ for the others.

    Each sum is taken by itself: the difference of two long sums would lose the accuracy of a short one.

    Args:
        log_decay: (..., steps, 1).

    Returns:
        (..., steps i, steps j).
    """
    steps = log_decay.shape[-2]
    ones = torch.ones(steps, steps, dtype=torch.bool, device=log_decay.device)
    terms = log_decay.expand(*log_decay.shape[:-1], steps).masked_fill(~ones.tril(-1), 0.0)
    return terms.cumsum(-2).masked_fill(~ones.tril(), -torch.inf)
