"""The state-space-duality scan in plain torch: matrix products within a chunk, a recurrence between chunks.

Within a chunk with cumulated log-decays s_i = Σ_{k≤i} δ_k A, start state h and driven input v_j = δ_j x_j::

    y_i = Σ_{j≤i} (C_i · B_j) exp(s_i − s_j) v_j + exp(s_i) h C_i
    h'  = exp(s_last) h + Σ_j exp(s_last − s_j) v_j ⊗ B_j

Only the recurrence of h is a loop; all chunks share every other step. Backward keeps the chunks' start states and
rebuilds the matrices. A reversed scan sums from the other end and takes j ≥ i. The batch is worked off in parts that
fit the cache. Behind the end of the sequence the last chunk is filled with steps of δ = 0, which change nothing.

Two layouts meet. What couples the steps of a chunk is one matrix a head, so its operands are head-major,
(rows · chunks · heads, steps, headdim); what couples chunks shares B and C among the heads of a group, so its operands
stay token-major, (rows · chunks · groups, steps, heads a group · headdim), and states are (rows, chunks, groups,
d_state, heads a group · headdim): one product a group. Source: Dao and Gu (arXiv 2405.21060), section 6; the gradients
are derived by hand.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..chunked_time import cut_time
from ..precision import accumulation_dtype
from ..step_sizes import biased_steps, softplus_slope, step_sizes
from ..workspace import cut_batch
from .inputs import Gradients, Inputs, Outputs

CHUNK = 64
"""Longest chunk in steps: the products cost length × CHUNK, the states between chunks length / CHUNK."""

PART_ELEMENTS = 1 << 19
"""Elements of one work buffer; on a CPU a larger batch is worked off in parts of this size."""

LOG2_E = math.log2(math.e)
"""Decays are powers of two: torch's exp2 takes a quarter of the time of its exp on a CPU."""


class _Decays(NamedTuple):
    """Decays of the chunks; the factors a step, (rows, chunks, heads, steps), are in the accumulation dtype.

    With log2-decays s = coarse + fine, coarse being s rounded to the accumulation dtype, the pairwise decays are
    2^fine_i · 2^(coarse_i − coarse_j) · 2^−fine_j. The fine parts go into the operands, so that differences of long
    sums keep the accuracy of a single step although the matrix is made in the accumulation dtype.
    """

    coarse: Tensor
    refine: Tensor  # 2^fine_i, of the pairs' results
    unrefine: Tensor  # 2^−fine_j, of the pairs' operands
    from_start: Tensor  # exp(s_i)
    to_end: Tensor  # exp(s_end − s_j)
    total: Tensor  # exp(s_end), (rows, chunks, heads)


def num_chunks(length: int) -> int:
    """How many chunks a sequence of ``length`` steps is cut into; :func:`forward` saves a state for each."""
    return (length + CHUNK - 1) // CHUNK


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan."""
    x, dt, A, B, C, D, dt_bias, dt_softplus, reverse = inputs
    dtype = accumulation_dtype(x.dtype)
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    chunks = num_chunks(length)
    y = x.new_empty(x.shape, dtype=dtype)
    last_state = y.new_empty(batch, heads, headdim, d_state)
    states = y.new_empty(batch if save_states else 0, chunks, groups, d_state, heads // groups * headdim)
    for rows in cut_batch(x, PART_ELEMENTS)[0]:
        xf = x[rows].to(dtype)
        step = step_sizes(dt[rows], dt_bias, dt_softplus, dtype)
        decays = _decays(_log_decay(step, A), reverse, dtype)
        b, c = (_group_major(m[rows].to(dtype)) for m in (B, C))
        v = cut_chunks(xf * step.unsqueeze(-1))
        mixing = _pairwise(decays.coarse, groups, reverse).mul_(_scores(b, c, decays))
        mixed = torch.bmm(mixing.flatten(0, 3), _head_major(v, decays.unrefine))
        ends = torch.bmm(b.mT, _group_tokens(v * _per_token(decays.to_end), groups))
        starts, h = _carry(ends.view(len(xf), chunks, groups, d_state, -1), decays.total, None, reverse)
        if save_states:
            states[rows] = starts
        out = _tokens(torch.bmm(c, starts.flatten(0, 2)), decays, headdim).mul_(_per_token(decays.from_start))
        out.addcmul_(_token_major(mixed, decays), _per_token(decays.refine))
        out = out.flatten(1, 2)[:, :length]
        if D is None:
            y[rows] = out
        else:
            torch.addcmul(out, xf, D.to(dtype).unsqueeze(-1), out=y[rows])
        last_state[rows] = _state(h, headdim)
    saved = (chunks if save_states else 0, *last_state.shape)
    return y.to(x.dtype), last_state, states.view(saved)


def backward(grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`.

    Args:
        grad_y: Gradient of y, (batch, length, heads, headdim).
        grad_last_state: Gradient of the last state, (batch, heads, headdim, d_state), or None for zero.
        states: What forward returned with ``save_states``.
        inputs: As for :func:`forward`.
    """
    x, dt, A, B, C, D, dt_bias, dt_softplus, reverse = inputs
    dtype = accumulation_dtype(x.dtype)
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    chunks = num_chunks(length)
    states = states.view(batch, chunks, groups, d_state, heads // groups * headdim)
    grad_x, grad_B, grad_C = (m.new_empty(m.shape, dtype=dtype) for m in (x, B, C))
    grad_dt = dt.new_empty(dt.shape, dtype=torch.float64)
    grad_A = A.new_zeros(A.shape, dtype=torch.float64)
    grad_D = None if D is None else D.new_zeros(D.shape, dtype=dtype)
    for rows in cut_batch(x, PART_ELEMENTS)[0]:
        xf, grad_out = x[rows].to(dtype), grad_y[rows].to(dtype)
        biased = biased_steps(dt[rows], dt_bias, dtype)
        step = F.softplus(biased) if dt_softplus else biased
        decays = _decays(_log_decay(step, A), reverse, dtype)
        b, c = (_group_major(m[rows].to(dtype)) for m in (B, C))
        v, g = cut_chunks(xf * step.unsqueeze(-1)), cut_chunks(grad_out)
        scores = _scores(b, c, decays)
        pairs = _pairwise(decays.coarse, groups, reverse)
        g_heads, v_heads = _head_major(g, decays.refine), _head_major(v, decays.unrefine)
        grad_pairs = torch.bmm(g_heads, v_heads.mT).view(pairs.shape).mul_(pairs)
        grad_scores = grad_pairs.sum(3).flatten(0, 2)
        mixed = torch.bmm(pairs.mul_(scores).flatten(0, 3).mT, g_heads)

        started = _group_tokens(g * _per_token(decays.from_start), groups)
        ending = _group_tokens(v * _per_token(decays.to_end), groups)
        starts = states[rows]
        carry = None
        if grad_last_state is not None:
            carry = _matrix_state(grad_last_state[rows].to(dtype), groups)
        grad_starts = torch.bmm(c.mT, started).view(starts.shape)
        # the gradient of a chunk's end is carried against the scan
        grad_ends, _ = _carry(grad_starts, decays.total, carry, not reverse)
        carried, outgoing = torch.bmm(b, grad_ends.flatten(0, 2)), torch.bmm(c, starts.flatten(0, 2))
        grad_b = torch.bmm(grad_scores.mT, c).baddbmm_(ending, grad_ends.flatten(0, 2).mT)
        grad_c = torch.bmm(grad_scores, b).baddbmm_(started, starts.flatten(0, 2).mT)
        grad_B[rows] = _group_tokens_inverse(grad_b, decays, groups)[:, :length]
        grad_C[rows] = _group_tokens_inverse(grad_c, decays, groups)[:, :length]

        # float64: a chunk's terms cancel in the difference of row and column sums, and there is one number a step
        through_pairs = grad_pairs.mul_(scores).flatten(2, 3)
        through_end = _head_sums(carried * ending, decays, headdim)
        grad_sums = through_pairs.sum(-1, dtype=torch.float64) - through_pairs.sum(-2, dtype=torch.float64)
        grad_sums += _head_sums(outgoing * started, decays, headdim) - through_end
        grad_end = (
            (grad_ends * starts).sum(-2, dtype=torch.float64).unflatten(-1, (-1, headdim)).sum(-1).flatten(2)
        )
        grad_sums[..., 0 if reverse else -1] += through_end.sum(-1) + grad_end * decays.total
        # s_i sums the log-decays up to i, so each log-decay gathers the gradients of all later sums
        grad_rate = _cumulate(grad_sums, not reverse).transpose(2, 3).flatten(1, 2)[:, :length]

        grad_v = _tokens(carried, decays, headdim).mul_(_per_token(decays.to_end))
        grad_v = grad_v.addcmul_(_token_major(mixed, decays), _per_token(decays.unrefine)).flatten(1, 2)[
            :, :length
        ]
        grad_u = torch.mul(grad_v, step.unsqueeze(-1), out=grad_x[rows])
        grad_step = grad_rate * A.double() + (grad_v * xf).sum(-1, dtype=torch.float64)
        grad_A += (grad_rate * step).sum((0, 1))
        if D is not None and grad_D is not None:
            grad_u.addcmul_(grad_out, D.to(dtype).unsqueeze(-1))
            grad_D += (grad_out * xf).sum((0, 1, 3))
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


def cut_chunks(tokens: Tensor) -> Tensor:
    """Cuts (rows, length, heads, width) into (rows, chunks, steps, heads, width), zeros after the end.

    The chunks are as short as their number allows, so that few zeros are needed.
    """
    length = tokens.shape[1]
    chunks = num_chunks(length)
    return cut_time(tokens, chunks, -(-length // chunks))


def _log_decay(step: Tensor, A: Tensor) -> Tensor:
    """Computes log2 of the decays in float64, (rows, chunks, heads, steps)."""
    log_decay = step.double() * (A.double() * LOG2_E)
    return cut_chunks(log_decay.unsqueeze(-1)).squeeze(-1).transpose(2, 3)


def _cumulate(values: Tensor, reverse: bool) -> Tensor:
    """Sums along the last axis up to each entry, or from it on."""
    return values.flip(-1).cumsum(-1).flip(-1) if reverse else values.cumsum(-1)


def _decays(log_decay: Tensor, reverse: bool, dtype: torch.dtype) -> _Decays:
    """Computes the decays from the log2-decays in float64, (rows, chunks, heads, steps)."""
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

    Returns (rows, chunks, groups, heads a group, steps, steps).
    """
    steps = coarse.shape[-1]
    reach = coarse.new_full((steps, steps), -torch.inf)
    reach = reach.tril(-1) if reverse else reach.triu(1)
    difference = coarse.unsqueeze(-1) - coarse.unsqueeze(-2)
    return difference.add_(reach).exp2_().unflatten(2, (groups, -1))


def _scores(b: Tensor, c: Tensor, decays: _Decays) -> Tensor:
    """Computes C_i · B_j, (rows, chunks, groups, 1, steps, steps)."""
    rows, chunks = decays.total.shape[:2]
    return torch.bmm(c, b.mT).unflatten(0, (rows, chunks, -1)).unsqueeze(3)


def _carry(ends: Tensor, total: Tensor, state: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """Turns what the chunks add to the state into the states before each of them, and the state after the last.

    Args:
        ends: What each chunk adds, (rows, chunks, groups, d_state, heads a group · headdim).
        total: What it leaves of the state, (rows, chunks, heads).
        state: State before the first chunk, (rows, groups, d_state, heads a group · headdim), or None for zero.
        reverse: Whether the last chunk comes first.

    Returns:
        The states, of the shape of ``ends``, and of that of ``state``.
    """
    rows, chunks, groups = ends.shape[:3]
    factors = total.view(rows, chunks, groups, 1, -1, 1)
    starts = torch.empty_like(ends)
    state = torch.zeros_like(ends[:, 0]) if state is None else state
    for index in reversed(range(chunks)) if reverse else range(chunks):
        starts[:, index] = state
        by_head = starts[:, index].unflatten(-1, (factors.shape[4], -1))
        state = torch.addcmul(ends[:, index].view(by_head.shape), by_head, factors[:, index]).flatten(3)
    return starts, state


def _state(matrix: Tensor, headdim: int) -> Tensor:
    """Turns (rows, groups, d_state, heads a group · headdim) into (rows, heads, headdim, d_state)."""
    return matrix.unflatten(-1, (-1, headdim)).permute(0, 1, 3, 4, 2).flatten(1, 2)


def _matrix_state(state: Tensor, groups: int) -> Tensor:
    """Inverts :func:`_state`."""
    return state.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3).flatten(3)


def _group_major(matrix: Tensor) -> Tensor:
    """Turns (rows, length, groups, d_state) into (rows · chunks · groups, steps, d_state)."""
    return cut_chunks(matrix).transpose(2, 3).flatten(0, 2)


def _head_major(values: Tensor, factors: Tensor) -> Tensor:
    """Turns (rows, chunks, steps, heads, headdim) into (rows · chunks · heads, steps, headdim).

    Multiplies by ``factors``, (rows, chunks, heads, steps), on the way.
    """
    out = values.new_empty(*factors.shape, values.shape[-1])
    return torch.mul(values.transpose(2, 3), factors.unsqueeze(-1), out=out).flatten(0, 2)


def _token_major(values: Tensor, decays: _Decays) -> Tensor:
    """Views (rows · chunks · heads, steps, headdim) as (rows, chunks, steps, heads, headdim)."""
    return values.unflatten(0, decays.total.shape).transpose(2, 3)


def _per_token(factors: Tensor) -> Tensor:
    """Views (rows, chunks, heads, steps) as factors of (rows, chunks, steps, heads, headdim)."""
    return factors.transpose(2, 3).unsqueeze(-1)


def _group_tokens(values: Tensor, groups: int) -> Tensor:
    """Turns (rows, chunks, steps, heads, headdim) into (rows · chunks · groups, steps, heads a group · headdim)."""
    return values.unflatten(3, (groups, -1)).flatten(4).transpose(2, 3).flatten(0, 2)


def _group_tokens_inverse(values: Tensor, decays: _Decays, groups: int) -> Tensor:
    """Turns (rows · chunks · groups, steps, width) into (rows, chunks · steps, groups, width)."""
    rows, chunks = decays.total.shape[:2]
    return values.unflatten(0, (rows, chunks, groups)).transpose(2, 3).flatten(1, 2)


def _tokens(values: Tensor, decays: _Decays, headdim: int) -> Tensor:
    """Inverts :func:`_group_tokens`."""
    rows, chunks = decays.total.shape[:2]
    by_head = values.unflatten(0, (rows, chunks, -1)).unflatten(-1, (-1, headdim))
    return by_head.transpose(2, 3).flatten(3, 4)


def _head_sums(values: Tensor, decays: _Decays, headdim: int) -> Tensor:
    """Sums (rows · chunks · groups, steps, heads a group · headdim) over headdim: (rows, chunks, heads, steps)."""
    sums = values.unflatten(-1, (-1, headdim)).sum(-1, dtype=torch.float64)
    rows, chunks = decays.total.shape[:2]
    return sums.unflatten(0, (rows, chunks, -1)).transpose(3, 4).flatten(2, 3)
