"""The state-space-duality scan in plain torch: matrix products within a chunk, a recurrence between chunks.

Within a chunk with cumulated log-decays s_i = Σ_{k≤i} δ_k A, start state h and driven input v_j = δ_j x_j::

    y_i = Σ_{j≤i} (C_i · B_j) exp(s_i − s_j) v_j + exp(s_i) h C_i
    h'  = exp(s_last) h + Σ_j exp(s_last − s_j) v_j ⊗ B_j

Backward keeps the chunks' start states only and rebuilds the matrices. Tensors inside are head-major,
(batch, groups, heads a group, steps, ...), so that B and C are shared within a group without a copy.
Source: Dao and Gu (arXiv 2405.21060), section 6, the block decomposition; the gradients are derived by hand.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulation_dtype

CHUNK = 64
"""Longest chunk in steps: the products cost length × CHUNK, the states between chunks length / CHUNK."""

SOFTPLUS_THRESHOLD = 20.0
"""Above it torch's softplus is the identity."""


class _Chunk(NamedTuple):
    """What both directions need of a chunk; all in the accumulation dtype."""

    decay_from_start: Tensor  # exp(s_i), (batch, groups, heads, steps, 1)
    decay_to_end: Tensor  # exp(s_last − s_j), (batch, groups, heads, steps, 1)
    pairwise: Tensor  # exp(s_i − s_j) for j ≤ i, else 0, (batch, groups, heads, steps, steps)
    scores: Tensor  # C_i · B_j, (batch, groups, 1, steps, steps)


def num_chunks(length: int) -> int:
    """How many chunks a sequence of ``length`` steps is cut into."""
    return (length + CHUNK - 1) // CHUNK


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the scan.

    Args:
        x: Input, (batch, length, heads, headdim).
        dt: Step sizes before bias and softplus, (batch, length, heads).
        A: Decay rates, (heads,).
        B: Input matrix, (batch, length, groups, d_state).
        C: Output matrix, (batch, length, groups, d_state).
        D: Skip weights, (heads,).
        dt_bias: Added to ``dt``, (heads,).
        dt_softplus: Whether δ is the softplus of the biased ``dt``.
        save_states: Whether to return the states that backward starts from.

    Returns:
        y in the dtype of ``x``, (batch, length, heads, headdim); the last state and the states at the starts of the
        chunks, (batch, heads, headdim, d_state) and (chunks, batch, heads, headdim, d_state), in the accumulation
        dtype. Without ``save_states`` the latter has no elements.
    """
    dtype = accumulation_dtype(x.dtype)
    groups, d_state = B.shape[2:]
    step = _step_sizes(dt, dt_bias, dt_softplus, dtype)
    values, log_decay = _head_major(x.to(dtype) * step.unsqueeze(-1), groups), _log_decay(step, A, groups)
    inputs, outputs = _group_major(B, dtype), _group_major(C, dtype)
    y = torch.empty_like(values, memory_format=torch.contiguous_format)
    h = values.new_zeros(*values.shape[:3], values.shape[-1], d_state)
    chunks = _chunks(x.shape[1])
    states = h.new_empty(len(chunks) if save_states else 0, *h.shape)
    for index, times in enumerate(chunks):
        if save_states:
            states[index] = h
        v, b, c = (m[..., times, :] for m in (values, inputs, outputs))
        chunk = _chunk(log_decay[..., times], b, c)
        y[..., times, :] = torch.matmul(chunk.scores * chunk.pairwise, v).add_(
            torch.matmul(c, h.mT) * chunk.decay_from_start
        )
        h = _next_state(chunk, h, v, b)
    y = y.flatten(1, 2).transpose(1, 2)
    if D is not None:
        y = y + x.to(dtype) * D.to(dtype).unsqueeze(-1)
    return y.to(x.dtype).contiguous(), h.flatten(1, 2), states.flatten(2, 3)


def backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiates :func:`forward`.

    Args:
        grad_y: Gradient of y, (batch, length, heads, headdim).
        grad_last_state: Gradient of the last state, (batch, heads, headdim, d_state), or None for zero.
        states: What forward returned with ``save_states``.
        x: As for :func:`forward`, as are all that follow.
        dt: As for forward.
        A: As for forward.
        B: As for forward.
        C: As for forward.
        D: As for forward.
        dt_bias: As for forward.
        dt_softplus: As for forward.

    Returns:
        The gradients of x, dt, A, B, C, D and dt_bias in their dtypes; those of absent inputs are empty.
    """
    dtype = accumulation_dtype(x.dtype)
    groups = B.shape[2]
    step = _step_sizes(dt, dt_bias, dt_softplus, dtype)
    xf, grad_out = x.to(dtype), grad_y.to(dtype)
    values, log_decay = _head_major(xf * step.unsqueeze(-1), groups), _log_decay(step, A, groups)
    inputs, outputs, grad = _group_major(B, dtype), _group_major(C, dtype), _head_major(grad_out, groups)
    states = states.unflatten(2, (groups, -1))

    grad_values = torch.empty_like(values)
    grad_inputs, grad_outputs = torch.empty_like(inputs), torch.empty_like(outputs)
    # float64: a chunk's terms cancel in the difference of row and column sums, and there is one number a step only
    grad_log_decay = log_decay.new_empty(log_decay.shape, dtype=torch.float64)
    if grad_last_state is None:
        carry = torch.zeros_like(states[0])
    else:
        carry = grad_last_state.to(dtype).unflatten(1, (groups, -1))
    for index, times in reversed(list(enumerate(_chunks(x.shape[1])))):
        v, b, c, g = (m[..., times, :] for m in (values, inputs, outputs, grad))
        h = states[index]
        chunk = _chunk(log_decay[..., times], b, c)
        mixing = chunk.scores * chunk.pairwise
        grad_pairs = torch.matmul(g, v.mT)

        started = g * chunk.decay_from_start
        to_end = v * chunk.decay_to_end
        carried = torch.matmul(b, carry.mT)
        grad_values[..., times, :] = torch.matmul(mixing.mT, g).addcmul_(carried, chunk.decay_to_end)
        grad_scores = (grad_pairs * chunk.pairwise).sum(2, keepdim=True)
        outgoing = torch.matmul(started, h)
        grad_outputs[..., times, :] = torch.matmul(grad_scores, b) + outgoing.sum(2, keepdim=True)
        ending = torch.matmul(to_end, carry)
        grad_inputs[..., times, :] = torch.matmul(grad_scores.mT, c) + ending.sum(2, keepdim=True)

        through_pairs = (grad_pairs * mixing).double()
        through_end = (carried * to_end).sum(-1, dtype=torch.float64)
        grad_sums = through_pairs.sum(-1) - through_pairs.sum(-2) - through_end
        grad_sums += (outgoing * c).sum(-1, dtype=torch.float64)
        last_decay = chunk.decay_from_start[..., -1:, :]
        grad_sums[..., -1] += through_end.sum(-1)
        grad_sums[..., -1] += (carry * h).sum((-2, -1), dtype=torch.float64) * last_decay[..., 0, 0]
        # s_i sums the log-decays up to i, so each log-decay gathers the gradients of all later sums
        grad_log_decay[..., times] = grad_sums.flip(-1).cumsum(-1).flip(-1)
        carry = carry * last_decay + torch.matmul(started.mT, c)

    grad_driven = grad_values.flatten(1, 2).transpose(1, 2)
    grad_rate = grad_log_decay.flatten(1, 2).transpose(1, 2)
    grad_step = grad_rate * A.double() + (grad_driven * xf).sum(-1, dtype=torch.float64)
    grad_A = (grad_rate * step).sum((0, 1))
    grad_x = grad_driven * step.unsqueeze(-1)
    grad_D, grad_bias = x.new_empty(0), x.new_empty(0)
    if D is not None:
        grad_x.addcmul_(grad_out, D.to(dtype).unsqueeze(-1))
        grad_D = (grad_out * xf).sum((0, 1, 3)).to(D.dtype)
    if dt_softplus:
        biased = dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)
        grad_step = grad_step * torch.where(biased > SOFTPLUS_THRESHOLD, 1.0, biased.sigmoid())
    if dt_bias is not None:
        grad_bias = grad_step.sum((0, 1)).to(dt_bias.dtype)
    return (
        grad_x.to(x.dtype),
        grad_step.to(dt.dtype),
        grad_A.to(A.dtype),
        grad_inputs.squeeze(2).transpose(1, 2).to(B.dtype),
        grad_outputs.squeeze(2).transpose(1, 2).to(C.dtype),
        grad_D,
        grad_bias,
    )


def _chunks(length: int) -> list[slice]:
    """Cuts the sequence into chunks of nearly equal length, so that none is a stub of a step or two."""
    count = num_chunks(length)
    bounds = [index * length // count for index in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def _chunk(log_decay: Tensor, inputs: Tensor, outputs: Tensor) -> _Chunk:
    """Builds the decays and scores of a chunk from (batch, groups, heads, steps) log-decays."""
    # float64: s_i − s_j keeps the accuracy of a single step when the sums are long
    sums = log_decay.double().cumsum(-1)
    steps = sums.shape[-1]
    later = torch.ones(steps, steps, dtype=torch.bool, device=sums.device).triu(1)
    difference = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).to(log_decay.dtype)
    return _Chunk(
        decay_from_start=sums.exp().to(log_decay.dtype).unsqueeze(-1),
        decay_to_end=(sums[..., -1:] - sums).exp().to(log_decay.dtype).unsqueeze(-1),
        pairwise=difference.masked_fill_(later, -torch.inf).exp_(),
        scores=torch.matmul(outputs, inputs.mT),
    )


def _next_state(chunk: _Chunk, h: Tensor, values: Tensor, inputs: Tensor) -> Tensor:
    """Carries the state, (batch, groups, heads, headdim, d_state), over a chunk."""
    return h * chunk.decay_from_start[..., -1:, :] + torch.matmul((values * chunk.decay_to_end).mT, inputs)


def _head_major(values: Tensor, groups: int) -> Tensor:
    """Turns (batch, length, heads, headdim) into (batch, groups, heads a group, length, headdim)."""
    return values.transpose(1, 2).unflatten(1, (groups, -1))


def _group_major(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns (batch, length, groups, d_state) into (batch, groups, 1, length, d_state)."""
    return matrix.to(dtype).transpose(1, 2).unsqueeze(2).contiguous()


def _log_decay(step: Tensor, A: Tensor, groups: int) -> Tensor:
    """Computes δ A, (batch, groups, heads a group, length)."""
    return (step * A.to(step.dtype)).transpose(1, 2).unflatten(1, (groups, -1))


def _step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dtype: torch.dtype) -> Tensor:
    """Computes δ, (batch, length, heads)."""
    step = dt.to(dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    return F.softplus(step) if dt_softplus else step
