"""The state-space-duality scan in plain torch: matrix products within a chunk, a recurrence between chunks.

Within a chunk with cumulated log-decays s_i = Σ_{k≤i} δ_k A, start state h and driven input v_j = δ_j x_j::

    y_i = Σ_{j≤i} (C_i · B_j) exp(s_i − s_j) v_j + exp(s_i) h C_i
    h'  = exp(s_last) h + Σ_j exp(s_last − s_j) v_j ⊗ B_j

Backward keeps the chunks' start states only and rebuilds the matrices. A reversed scan sums from the other end and
takes j ≥ i. The batch is worked off in slabs that fit the cache.

Two layouts meet. What couples the steps of a chunk is one matrix a head, so its operands are head-major,
(rows · heads, steps, headdim); what couples chunks shares B and C among the heads of a group, so its operands stay
token-major, (rows · groups, steps, heads a group · headdim), and states are (rows · groups, d_state, heads a group ·
headdim): one product a group. Source: Dao and Gu (arXiv 2405.21060), section 6; the gradients are derived by hand.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulation_dtype
from ..step_sizes import biased_steps, softplus_slope, step_sizes

CHUNK = 64
"""Longest chunk in steps: the products cost length × CHUNK, the states between chunks length / CHUNK."""

SLAB_ELEMENTS = 1 << 20
"""Elements of one work buffer; on a CPU a larger batch is worked off in slabs of this size."""

LOG2_E = math.log2(math.e)
"""Decays are powers of two: torch's exp2 takes a quarter of the time of its exp on a CPU."""


class _Decays(NamedTuple):
    """Decays of a chunk; the factors a step, (rows, heads, steps), are in the accumulation dtype.

    With log2-decays s = coarse + fine, coarse being s rounded to the accumulation dtype, the pairwise decays are
    2^fine_i · 2^(coarse_i − coarse_j) · 2^−fine_j. The fine parts go into the operands, so that differences of long
    sums keep the accuracy of a single step although the matrix is made in the accumulation dtype.
    """

    coarse: Tensor
    refine: Tensor  # 2^fine_i, of the pairs' results
    unrefine: Tensor  # 2^−fine_j, of the pairs' operands
    from_start: Tensor  # exp(s_i)
    to_end: Tensor  # exp(s_end − s_j)
    total: Tensor  # exp(s_end), (rows, heads)


def num_chunks(length: int) -> int:
    """How many chunks a sequence of ``length`` steps is cut into; :func:`forward` saves a state for each."""
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
    reverse: bool = False,
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
        reverse: Whether time runs from the last token to the first.

    Returns:
        y in the dtype of ``x``, (batch, length, heads, headdim); the last state, (batch, heads, headdim, d_state), in
        the accumulation dtype; and the states before each chunk, of the shape (chunks, batch, heads, headdim, d_state)
        but in the layout of this module. Without ``save_states`` the latter has no elements.
    """
    dtype = accumulation_dtype(x.dtype)
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    chunks = _chunks(length, reverse)
    y = x.new_empty(x.shape, dtype=dtype)
    last_state = y.new_empty(batch, heads, headdim, d_state)
    states = y.new_empty(
        len(chunks) if save_states else 0, batch * groups, d_state, heads // groups * headdim
    )
    for rows in _slabs(x):
        count = rows.stop - rows.start
        matrix_rows = slice(rows.start * groups, rows.stop * groups)
        step = step_sizes(dt[rows], dt_bias, dt_softplus, dtype)
        log_decay = _log_decay(step, A)
        b, c = (_group_major(m[rows], dtype) for m in (B, C))
        h = y.new_zeros(count * groups, d_state, heads // groups * headdim)
        for index, times in chunks:
            if save_states:
                states[index, matrix_rows] = h
            decays = _decays(log_decay[..., times], reverse, dtype)
            v, out = x[rows, times].to(dtype) * step[:, times].unsqueeze(-1), y[rows, times]
            b_chunk, c_chunk = b[:, times], c[:, times]
            scores = torch.bmm(c_chunk, b_chunk.mT).unflatten(0, (count, groups)).unsqueeze(2)
            mixing = _pairwise(decays.coarse, groups, reverse).mul_(scores)
            mixed = torch.bmm(mixing.flatten(0, 2), _head_major(v, decays.unrefine))
            carried = _tokens(torch.bmm(c_chunk, h), groups, headdim)
            torch.mul(carried, _per_token(decays.from_start), out=out)
            out.addcmul_(mixed.unflatten(0, (count, heads)).transpose(1, 2), _per_token(decays.refine))
            _decay_state(h, decays.total, groups)
            h.baddbmm_(b_chunk.mT, _group_tokens(v * _per_token(decays.to_end), groups))
        last_state[rows] = _state(h, groups, headdim)
        if D is not None:
            y[rows].addcmul_(x[rows].to(dtype), D.to(dtype).unsqueeze(-1))
    return y.to(x.dtype), last_state, states.view(len(states), *last_state.shape)


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
    reverse: bool = False,
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
        reverse: As for forward.

    Returns:
        The gradients of x, dt, A, B, C, D and dt_bias in their dtypes; those of absent inputs are empty.
    """
    dtype = accumulation_dtype(x.dtype)
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    chunks = _chunks(length, reverse)
    states = states.view(len(chunks), batch * groups, d_state, heads // groups * headdim)
    grad_x, grad_B, grad_C = (m.new_empty(m.shape, dtype=dtype) for m in (x, B, C))
    grad_dt = dt.new_empty(dt.shape, dtype=torch.float64)
    grad_A = A.new_zeros(A.shape, dtype=torch.float64)
    grad_D = None if D is None else D.new_zeros(D.shape, dtype=dtype)
    for rows in _slabs(x):
        count = rows.stop - rows.start
        matrix_rows = slice(rows.start * groups, rows.stop * groups)
        biased = biased_steps(dt[rows], dt_bias, dtype)
        step = F.softplus(biased) if dt_softplus else biased
        log_decay = _log_decay(step, A)
        b, c = (_group_major(m[rows], dtype) for m in (B, C))
        grad_driven_step = torch.empty_like(step, dtype=torch.float64)
        # float64: a chunk's terms cancel in the difference of row and column sums, and there is one number a step
        grad_log_decay = torch.empty_like(log_decay)
        if grad_last_state is None:
            carry = torch.zeros_like(states[0, matrix_rows])
        else:
            carry = _matrix_state(grad_last_state[rows].to(dtype), groups)
        for index, times in reversed(chunks):
            decays = _decays(log_decay[..., times], reverse, dtype)
            u, g, h = x[rows, times].to(dtype), grad_y[rows, times].to(dtype), states[index, matrix_rows]
            step_chunk = step[:, times].unsqueeze(-1)
            v = u * step_chunk
            b_chunk, c_chunk = b[:, times], c[:, times]
            scores = torch.bmm(c_chunk, b_chunk.mT).unflatten(0, (count, groups)).unsqueeze(2)
            pairs = _pairwise(decays.coarse, groups, reverse)
            g_heads, v_heads = _head_major(g, decays.refine), _head_major(v, decays.unrefine)
            grad_pairs = torch.bmm(g_heads, v_heads.mT).view(pairs.shape).mul_(pairs)
            grad_scores = grad_pairs.sum(2).flatten(0, 1)
            mixing = pairs.mul_(scores)

            started = _group_tokens(g * _per_token(decays.from_start), groups)
            ending = _group_tokens(v * _per_token(decays.to_end), groups)
            carried = torch.bmm(b_chunk, carry)
            outgoing = torch.bmm(c_chunk, h)
            mixed = torch.bmm(mixing.flatten(0, 2).mT, g_heads).unflatten(0, (count, heads)).transpose(1, 2)
            grad_v = _tokens(carried, groups, headdim) * _per_token(decays.to_end)
            grad_v.addcmul_(mixed, _per_token(decays.unrefine))
            grad_u = torch.mul(grad_v, step_chunk, out=grad_x[rows, times])
            grad_driven_step[:, times] = grad_v.mul_(u).sum(-1, dtype=torch.float64)
            if D is not None and grad_D is not None:
                grad_u.addcmul_(g, D.to(dtype).unsqueeze(-1))
                grad_D += (g * u).sum((0, 1, 3))
            grad_b = torch.bmm(grad_scores.mT, c_chunk).baddbmm_(ending, carry.mT)
            grad_c = torch.bmm(grad_scores, b_chunk).baddbmm_(started, h.mT)
            grad_B[rows, times] = grad_b.unflatten(0, (count, groups)).transpose(1, 2)
            grad_C[rows, times] = grad_c.unflatten(0, (count, groups)).transpose(1, 2)

            through_pairs = grad_pairs.mul_(scores).flatten(1, 2)
            through_end = _head_sums(carried * ending, groups, headdim)
            grad_sums = through_pairs.sum(-1, dtype=torch.float64) - through_pairs.sum(
                -2, dtype=torch.float64
            )
            grad_sums += _head_sums(outgoing * started, groups, headdim) - through_end
            grad_end = _head_sums((carry * h).sum(1, keepdim=True, dtype=torch.float64), groups, headdim)
            last = 0 if reverse else -1
            grad_sums[..., last] += through_end.sum(-1) + grad_end[..., 0] * decays.total
            # s_i sums the log-decays up to i, so each log-decay gathers the gradients of all later sums
            grad_log_decay[..., times] = _cumulate(grad_sums, not reverse)
            _decay_state(carry, decays.total, groups)
            carry.baddbmm_(c_chunk.mT, started)

        grad_rate = grad_log_decay.transpose(1, 2)
        grad_step = grad_rate * A.double() + grad_driven_step
        grad_A += (grad_rate * step).sum((0, 1))
        grad_dt[rows] = grad_step * softplus_slope(biased) if dt_softplus else grad_step
    return (
        grad_x.to(x.dtype),
        grad_dt.to(dt.dtype),
        grad_A.to(A.dtype),
        grad_B.to(B.dtype),
        grad_C.to(C.dtype),
        x.new_empty(0) if D is None or grad_D is None else grad_D.to(D.dtype),
        x.new_empty(0) if dt_bias is None else grad_dt.sum((0, 1)).to(dt_bias.dtype),
    )


def _slabs(x: Tensor) -> list[slice]:
    """Cuts the batch so that a slab's input fits one work buffer; other devices than CPUs take it whole."""
    batch, tokens = x.shape[0], x.shape[1:].numel()
    rows = max(1, SLAB_ELEMENTS // max(1, tokens)) if x.device.type == "cpu" else max(1, batch)
    return [slice(first, min(first + rows, batch)) for first in range(0, batch, rows)]


def _chunks(length: int, reverse: bool) -> list[tuple[int, slice]]:
    """Cuts the sequence into chunks of nearly equal length, none a stub of a step or two, in scan order."""
    count = num_chunks(length)
    bounds = [index * length // count for index in range(count + 1)]
    slices = [slice(*pair) for pair in pairwise(bounds)]
    return list(enumerate(slices[::-1] if reverse else slices))


def _log_decay(step: Tensor, A: Tensor) -> Tensor:
    """Computes log2 of the decays in float64, (rows, heads, length)."""
    return (step.double() * (A.double() * LOG2_E)).transpose(1, 2)


def _cumulate(values: Tensor, reverse: bool) -> Tensor:
    """Sums along the last axis up to each entry, or from it on."""
    return values.flip(-1).cumsum(-1).flip(-1) if reverse else values.cumsum(-1)


def _decays(log_decay: Tensor, reverse: bool, dtype: torch.dtype) -> _Decays:
    """Computes the decays of a chunk from its log2-decays in float64, (rows, heads, steps)."""
    sums = _cumulate(log_decay, reverse)
    end = sums[..., :1] if reverse else sums[..., -1:]
    coarse = sums.to(dtype)
    fine = sums - coarse
    return _Decays(
        coarse=coarse,
        refine=fine.exp2().to(dtype),
        unrefine=fine.neg().exp2().to(dtype),
        from_start=sums.exp2().to(dtype),
        to_end=(end - sums).exp2().to(dtype),
        total=end.exp2().to(dtype).squeeze(-1),
    )


def _pairwise(coarse: Tensor, groups: int, reverse: bool) -> Tensor:
    """Computes 2^(coarse_i − coarse_j) where step j reaches step i, else 0.

    Returns (rows, groups, heads a group, steps, steps).
    """
    steps = coarse.shape[-1]
    reach = coarse.new_full((steps, steps), -torch.inf)
    reach = reach.tril(-1) if reverse else reach.triu(1)
    difference = coarse.unsqueeze(-1) - coarse.unsqueeze(-2)
    return difference.add_(reach).exp2_().unflatten(1, (groups, -1))


def _decay_state(state: Tensor, total: Tensor, groups: int) -> None:
    """Multiplies a state, (rows · groups, d_state, heads a group · headdim), by a number a head, in place."""
    rows, heads = total.shape
    per_group = heads // groups
    state.view(rows, groups, state.shape[1], per_group, -1).mul_(total.view(rows, groups, 1, per_group, 1))


def _state(matrix: Tensor, groups: int, headdim: int) -> Tensor:
    """Turns (rows · groups, d_state, heads a group · headdim) into (rows, heads, headdim, d_state)."""
    return matrix.unflatten(0, (-1, groups)).unflatten(-1, (-1, headdim)).permute(0, 1, 3, 4, 2).flatten(1, 2)


def _matrix_state(state: Tensor, groups: int) -> Tensor:
    """Inverts :func:`_state`."""
    return state.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3).flatten(3).flatten(0, 1).contiguous()


def _group_major(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns (rows, length, groups, d_state) into contiguous (rows · groups, length, d_state)."""
    return matrix.to(dtype).transpose(1, 2).flatten(0, 1).contiguous()


def _head_major(values: Tensor, factors: Tensor) -> Tensor:
    """Turns (rows, steps, heads, headdim) into (rows · heads, steps, headdim), times (rows, heads, steps)."""
    rows, steps, heads, headdim = values.shape
    out = values.new_empty(rows, heads, steps, headdim)
    return torch.mul(values.transpose(1, 2), factors.unsqueeze(-1), out=out).flatten(0, 1)


def _per_token(factors: Tensor) -> Tensor:
    """Views (rows, heads, steps) as factors of (rows, steps, heads, headdim)."""
    return factors.transpose(1, 2).unsqueeze(-1)


def _group_tokens(values: Tensor, groups: int) -> Tensor:
    """Turns (rows, steps, heads, headdim) into (rows · groups, steps, heads a group · headdim)."""
    return values.unflatten(2, (groups, -1)).flatten(3).transpose(1, 2).flatten(0, 1)


def _tokens(values: Tensor, groups: int, headdim: int) -> Tensor:
    """Inverts :func:`_group_tokens`."""
    return values.unflatten(0, (-1, groups)).transpose(1, 2).unflatten(-1, (-1, headdim)).flatten(2, 3)


def _head_sums(values: Tensor, groups: int, headdim: int) -> Tensor:
    """Sums (rows · groups, steps, heads a group · headdim) over headdim in float64: (rows, heads, steps)."""
    sums = values.unflatten(-1, (-1, headdim)).sum(-1, dtype=torch.float64)
    return sums.unflatten(0, (-1, groups)).transpose(2, 3).flatten(1, 2)
