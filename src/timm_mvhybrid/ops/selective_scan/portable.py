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

from ..chunked_time import carry, cut_time
from ..precision import accumulation_dtype, autocast_disabled
from ..step_sizes import step_sizes


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

    Arguments as in :class:`.Inputs`.

    Returns:
        y in the dtype of ``u``, (batch, length, d_inner), and the last state, (batch, groups, d_state, channels a
        group), in the accumulation dtype.
    """
    with autocast_disabled(u.device.type):
        if reverse:
            u, delta, B, C = (tokens.flip(1) for tokens in (u, delta, B, C))
            z = None if z is None else z.flip(1)
        dtype = accumulation_dtype(u.dtype)
        length, groups = u.shape[1], B.shape[2]
        x, A = u.to(dtype), A.to(dtype)
        step = step_sizes(delta, delta_bias, delta_softplus, dtype)
        rates = A.unflatten(0, (groups, -1)).transpose(1, 2)
        steps = steps_per_chunk(length)
        chunks = -(-length // steps)

        def per_channel(tokens: Tensor) -> Tensor:
            """Brings (batch, length, d_inner) into the form (batch, chunks, steps, groups, 1, channels)."""
            return cut_time(tokens, chunks, steps).unflatten(-1, (groups, 1, -1))

        chunked_step = per_channel(step)
        decays = (chunked_step * rates).exp().split(1, dim=2)
        drives = (per_channel(step * x) * cut_time(B.to(dtype), chunks, steps).unsqueeze(-1)).split(1, dim=2)
        outputs = cut_time(C.to(dtype), chunks, steps).unsqueeze(-1).split(1, dim=2)

        h = drives[0]
        for decay, drive in zip(decays[1:], drives[1:], strict=True):
            h = decay * h + drive
        starts, last_state = carry(h, (chunked_step.sum(2, keepdim=True) * rates).exp())

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
        y = y.to(u.dtype)
        return y.flip(1) if reverse else y, last_state.squeeze(2).squeeze(1)


def steps_per_chunk(length: int) -> int:
    """Chooses the steps of a chunk: a step costs twice the nodes of a chunk, hence √(length / 2)."""
    return max(1, math.isqrt(length // 2))
