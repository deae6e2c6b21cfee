"""The selective scan in functional ATen operations alone: what exporters and the transforms of torch.func can read.

Time is cut into chunks. A first pass walks through all chunks at once, from zero, and keeps their ends only; the ends
are carried from chunk to chunk; a second pass walks again, from the right starts::

    e_k = end of chunk k from zero,   s_{k+1} = exp(A Σ_{t in k} δ_t) s_k + e_k,   h_t as in ``reference.py`` from s_k

So the graph has of the order of √length nodes instead of length, the largest tensors are two of (batch, length,
d_inner, d_state), and every state is summed in the order of the plain loop, which no prefix product of decays is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulation_dtype, autocast_disabled


def selective_scan_portable(
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
) -> tuple[Tensor, Tensor]:
    """Runs the scan in token-major layout, as the registered operator does.

    Differentiable any number of times, in forward and in reverse mode, and under vmap; the batch may be symbolic, the
    length may not.

    Args:
        u: Input, (batch, length, d_inner).
        delta: Step sizes before bias and softplus, (batch, length, d_inner).
        A: State matrix, (d_inner, d_state).
        B: Input matrix, (batch, length, groups, d_state).
        C: Output matrix, (batch, length, groups, d_state).
        D: Skip weights, (d_inner,).
        z: Gate, (batch, length, d_inner).
        delta_bias: Added to ``delta``, (d_inner,).
        delta_softplus: Whether δ is the softplus of the biased ``delta``.
        reverse: Whether time runs from the last token to the first.

    Returns:
        y in the dtype of ``u``, (batch, length, d_inner), and the last state, (batch, groups, d_state, channels a
        group), in the accumulation dtype.
    """
    with autocast_disabled(u.device.type):
        if not reverse:
            return _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        u, delta, B, C = (tokens.flip(1) for tokens in (u, delta, B, C))
        z = None if z is None else z.flip(1)
        y, last_state = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return y.flip(1), last_state


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
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(u.dtype)
    length, groups = u.shape[1], B.shape[2]
    x, A = u.to(dtype), A.to(dtype)
    step = delta.to(dtype)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)
    if delta_softplus:
        step = F.softplus(step)
    rates = A.unflatten(0, (groups, -1)).transpose(1, 2)
    steps = steps_per_chunk(length)

    def per_channel(tokens: Tensor) -> Tensor:
        """Brings (batch, length, d_inner) into the form (batch, chunks, steps, groups, 1, channels)."""
        return _chunked(tokens, steps).unflatten(-1, (groups, 1, -1))

    chunked_step = per_channel(step)
    decays = (chunked_step * rates).exp().split(1, dim=2)
    drives = (per_channel(step * x) * _chunked(B.to(dtype), steps).unsqueeze(-1)).split(1, dim=2)
    outputs = _chunked(C.to(dtype), steps).unsqueeze(-1).split(1, dim=2)

    h = drives[0]
    for decay, drive in zip(decays[1:], drives[1:], strict=True):
        h = decay * h + drive
    starts, last_state = _carry(h, (chunked_step.sum(2, keepdim=True) * rates).exp())

    h, rows = starts, []
    for decay, drive, output in zip(decays, drives, outputs, strict=True):
        h = decay * h + drive
        # a sum, not a product of matrices: its gradient sums over channels with less error, and it is fewer nodes
        rows.append((output * h).sum(-2))
    y = torch.cat(rows, dim=2).flatten(3).flatten(1, 2)[:, :length]
    if D is not None:
        y = y + x * D.to(dtype)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), last_state


def steps_per_chunk(length: int) -> int:
    """Chooses the steps of a chunk: a step costs twice the nodes of a chunk, hence √(length / 2)."""
    return max(1, math.isqrt(length // 2))


def _chunked(tokens: Tensor, steps: int) -> Tensor:
    """Cuts (batch, length, ...) into (batch, chunks, steps, ...).

    Behind the end stand zeros: a step of δ = 0 changes no state.
    """
    chunks = -(-tokens.shape[1] // steps)
    missing = chunks * steps - tokens.shape[1]
    padded = F.pad(tokens, [0, 0] * (tokens.ndim - 2) + [0, missing]) if missing else tokens
    return padded.unflatten(1, (chunks, steps))


def _carry(ends: Tensor, decays: Tensor) -> tuple[Tensor, Tensor]:
    """Turns the chunks' ends from zero into the states at their starts, and the last state.

    Args:
        ends: (batch, chunks, 1, groups, d_state, channels).
        decays: What is left of a state after a chunk, of the same shape.

    Returns:
        The starts, of the same shape, and the last state, (batch, groups, d_state, channels).
    """
    ends_each, decays_each = ends.split(1, dim=1), decays.split(1, dim=1)
    state = ends_each[0]
    starts = [torch.zeros_like(state)]
    for end, decay in zip(ends_each[1:], decays_each[1:], strict=True):
        starts.append(state)
        state = decay * state + end
    return torch.cat(starts, dim=1), state.squeeze(2).squeeze(1)
