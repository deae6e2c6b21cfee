"""The state-space-duality scan in functional ATen operations alone, for exporters and the transforms of torch.func.

The block decomposition of ``cpu.py`` with all chunks in one product: only the carry between chunks is a loop.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulation_dtype, autocast_disabled
from .cpu import num_chunks


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

    Args:
        x: Input, (batch, length, heads, headdim).
        dt: Step sizes before bias and softplus, (batch, length, heads).
        A: Decay rates, (heads,).
        B: Input matrix, (batch, length, groups, d_state).
        C: Output matrix, (batch, length, groups, d_state).
        D: Skip weights, (heads,).
        dt_bias: Added to ``dt``, (heads,).
        dt_softplus: Whether δ is the softplus of the biased ``dt``.
        reverse: Whether time runs from the last token to the first.

    Returns:
        y in the dtype of ``x``, (batch, length, heads, headdim), and the last state, (batch, heads, headdim, d_state),
        in the accumulation dtype.
    """
    with autocast_disabled(x.device.type):
        if not reverse:
            return _scan(x, dt, A, B, C, D, dt_bias, dt_softplus)
        x, dt, B, C = (tokens.flip(1) for tokens in (x, dt, B, C))
        y, last_state = _scan(x, dt, A, B, C, D, dt_bias, dt_softplus)
        return y.flip(1), last_state


def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    length, groups = x.shape[1], B.shape[2]
    xf, step = x.to(dtype), dt.to(dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    if dt_softplus:
        step = F.softplus(step)
    values = _chunked(xf * step.unsqueeze(-1), groups)
    # B and C are shared by the heads of a group
    inputs, outputs = (_chunked(matrix.to(dtype), groups) for matrix in (B, C))
    log_decay = _chunked((step * A.to(dtype)).unsqueeze(-1), groups)

    between = _sums_between(log_decay)
    from_start = log_decay.cumsum(-2).exp()
    to_end = between[..., -1:, :].mT.exp()
    y = torch.matmul(torch.matmul(outputs, inputs.mT) * between.exp(), values)
    ends = torch.matmul((values * to_end).mT, inputs)
    starts, last_state = _carry(ends, from_start[..., -1:, :])
    y = y + torch.matmul(outputs, starts.mT) * from_start
    # (batch, chunks, groups, heads a group, steps, headdim) → (batch, length, heads, headdim)
    y = y.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :length]
    if D is not None:
        y = y + xf * D.to(dtype).unsqueeze(-1)
    return y.to(x.dtype), last_state


def _chunked(tokens: Tensor, groups: int) -> Tensor:
    """Cuts (batch, length, heads, width) into (batch, chunks, groups, heads a group, steps, width).

    Behind the end stand zeros: a step of δ = 0 changes no state.
    """
    length = tokens.shape[1]
    chunks = num_chunks(length)
    # equal chunks: the last one holds as few zeros as can be
    steps = -(-length // chunks)
    missing = chunks * steps - length
    padded = F.pad(tokens, [0, 0, 0, 0, 0, missing]) if missing else tokens
    return padded.unflatten(1, (chunks, steps)).transpose(2, 3).unflatten(2, (groups, -1))


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


def _carry(ends: Tensor, decays: Tensor) -> tuple[Tensor, Tensor]:
    """Turns the chunks' ends from zero into the states at their starts, and the last state.

    Args:
        ends: (batch, chunks, groups, heads a group, headdim, d_state).
        decays: What is left of a state after a chunk, (batch, chunks, groups, heads a group, 1, 1).

    Returns:
        The starts, of the shape of ``ends``, and the last state, (batch, heads, headdim, d_state).
    """
    ends_each, decays_each = ends.split(1, dim=1), decays.split(1, dim=1)
    state = ends_each[0]
    starts = [torch.zeros_like(state)]
    for end, decay in zip(ends_each[1:], decays_each[1:], strict=True):
        starts.append(state)
        state = decay * state + end
    return torch.cat(starts, dim=1), state.squeeze(1).flatten(1, 2)
