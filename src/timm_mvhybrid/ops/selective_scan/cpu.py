"""The selective scan in plain torch: chunked in time, recomputed in the backward pass.

The exponentials and products of a chunk are taken in one call each, so that the recurrence costs one fused
multiply-add a step. Forward keeps the state at the start of every chunk only; backward rebuilds the rest chunk by
chunk. So the extra memory is length / CHUNK states and one chunk of work buffers.

Layout: states are (batch, groups, d_state, channels) with channels = d_inner / groups, so that the innermost loop of
every elementwise kernel runs over contiguous channels. Source of the recurrence: see ``reference.py``; the gradients
are its adjoint, derived by hand.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autograd import ALL_NEEDED, is_needed
from ..precision import accumulation_dtype
from ..step_sizes import biased_steps, softplus_, softplus_slope, write_step_sizes
from ..workspace import cut_batch, scratch
from .inputs import Gradients, Inputs, Outputs

CHUNK = 16
"""Time steps a chunk: fewer cost dispatch, more fall out of the cache (measured at 384 channels, 16 states)."""

PART_ELEMENTS = 1 << 20
"""Elements of one work buffer; a larger batch is worked off in parts of this size."""

LOG2_E = math.log2(math.e)
"""Decays are powers of two of δ (A log2 e): torch's exp2 takes a quarter of the time of its exp on a CPU."""


def num_chunks(length: int) -> int:
    """How many states :func:`forward` saves for a sequence of ``length`` steps."""
    return (length + CHUNK - 1) // CHUNK


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan in token-major layout."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse = inputs
    dtype = accumulation_dtype(u.dtype)
    batch, length, _ = u.shape
    groups = B.shape[2]
    rates = grouped_matrix(A, groups, dtype) * LOG2_E
    y = u.new_empty(u.shape, dtype=dtype)
    last_state = y.new_empty(batch, *rates.shape)
    states = y.new_empty(num_chunks(length) if save_states else 0, batch, *rates.shape)
    parts, most_rows = cut_batch(u, PART_ELEMENTS, CHUNK * rates.numel())
    steps = CHUNK if save_states else _longest_chunk(most_rows * rates.numel())
    room = (steps, most_rows, *rates.shape)
    decay_room, state_room, *token_rooms = scratch(rates, room, room, *[(most_rows, *u.shape[1:])] * 2)
    decays, trajectory = _Buffer(decay_room), _Buffer(state_room)
    for rows in parts:
        x, b, c = (v[rows].to(dtype) for v in (u, B, C))
        step, driven = (v[: len(x)] for v in token_rooms)
        write_step_sizes(step, delta[rows], delta_bias, delta_softplus)
        torch.mul(step, x, out=driven)
        out, h = y[rows], last_state[rows].zero_()
        for chunk, times in _chunks(length, steps, reverse):
            if save_states:
                states[chunk, rows] = h
            h_chunk = _trajectory(
                _time_major(step, times, groups),
                _time_major(driven, times, groups),
                rates,
                b[:, times].transpose(0, 1),
                h,
                decays,
                trajectory,
                reverse,
            )
            scanned = torch.matmul(c[:, times].transpose(0, 1).unsqueeze(-2), h_chunk)
            out[:, times] = scanned.flatten(2).transpose(0, 1)
            h.copy_(h_chunk[0 if reverse else -1])
        if D is not None:
            out.addcmul_(x, D.to(dtype))
        if z is not None:
            out.mul_(F.silu(z[rows].to(dtype)))
    return y.to(u.dtype), last_state, states


def backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    inputs: Inputs,
    needed: int = ALL_NEEDED,
) -> Gradients:
    """Differentiates :func:`forward`.

    With the adjoint state g_t = C_t ḡ_t + exp(δ_{t+1} A) g_{t+1}, where ḡ is the gradient of the ungated y::

        dC_t = Σ_d ḡ_t h_t        dB_t = Σ_d g_t δ_t u_t        d(δu)_t = Σ_n g_t B_t
        q_t = g_t exp(δ_t A) h_{t-1}        dδ_t = Σ_n q_t A + u_t d(δu)_t        dA = Σ_t q_t δ_t

    ``states`` are those that forward saved; a ``grad_last_state`` of None stands for zero. The gradient of an A that is
    not ``needed`` is 0.
    """
    needs_A = is_needed(needed, Inputs._fields.index("A"))
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse = inputs
    dtype = accumulation_dtype(u.dtype)
    length = u.shape[1]
    groups = B.shape[2]
    Ag = grouped_matrix(A, groups, dtype)
    rates = Ag * LOG2_E
    grad_u, grad_delta, grad_B, grad_C = (v.new_empty(v.shape, dtype=dtype) for v in (u, delta, B, C))
    grad_A = torch.zeros_like(Ag)
    grad_D, grad_bias = (None if v is None else grad_A.new_zeros(v.shape) for v in (D, delta_bias))
    grad_z = None if z is None else z.new_empty(z.shape, dtype=dtype)
    parts, most_rows = cut_batch(u, PART_ELEMENTS, CHUNK * rates.numel())
    decays, trajectory, adjoints = (
        _Buffer(room) for room in scratch(rates, *[(CHUNK, most_rows, *rates.shape)] * 3)
    )
    for rows in parts:
        x, b, c, grad_out = (v[rows].to(dtype) for v in (u, B, C, grad_y))
        biased = biased_steps(delta[rows], delta_bias, dtype)
        step = biased
        if delta_softplus:
            step = biased.clone(memory_format=torch.contiguous_format)
            softplus_(step)
        driven = step * x
        grad_driven, grad_step = torch.empty_like(driven), grad_delta[rows]
        gate = y = None
        if z is not None:
            gate, y = z[rows].to(dtype), torch.empty_like(driven)
        grad_scan = grad_out if gate is None else grad_out * F.silu(gate)
        if grad_last_state is None:
            carry = rates.new_zeros(len(x), *rates.shape)
        else:
            carry = grad_last_state[rows].to(dtype, copy=True)
        for chunk, times in reversed(_chunks(length, CHUNK, reverse)):
            dt, inp, grad = (_time_major(v, times, groups) for v in (step, driven, grad_scan))
            b_chunk, c_chunk = b[:, times].transpose(0, 1), c[:, times].transpose(0, 1)
            start = states[chunk, rows]
            h = _trajectory(dt, inp, rates, b_chunk, start, decays, trajectory, reverse)
            decay = decays.of(dt)

            # sums over channels go through sum, which adds pairwise: a matrix product would double their error
            work = adjoints.of(dt)
            grad_C[rows, times] = torch.mul(h, grad.unsqueeze(-2), out=work).sum(-1).transpose(0, 1)
            if y is not None:
                y[:, times] = torch.matmul(c_chunk.unsqueeze(-2), h).flatten(2).transpose(0, 1)
            adjoint = torch.mul(c_chunk.unsqueeze(-1), grad.unsqueeze(-2), out=work)
            # against the scan
            for adjoint_t, decay_t in zip(
                adjoints.each(dt, not reverse), decays.each(dt, not reverse), strict=True
            ):
                adjoint_t.add_(carry)
                torch.mul(decay_t, adjoint_t, out=carry)
            grad_driven[:, times] = torch.matmul(b_chunk.unsqueeze(-2), adjoint).flatten(2).transpose(0, 1)

            if reverse:
                decay[-1].mul_(start)
                decay[:-1].mul_(h[1:])
            else:
                decay[0].mul_(start)
                decay[1:].mul_(h[:-1])
            sensitivity = decay.mul_(adjoint)
            work = torch.mul(adjoint, inp.unsqueeze(-2), out=h)
            grad_B[rows, times] = work.sum(-1).transpose(0, 1)
            grad_step[:, times] = torch.mul(sensitivity, Ag, out=work).sum(-2).flatten(2).transpose(0, 1)
            if needs_A:
                grad_A += torch.mul(sensitivity, dt.unsqueeze(-2), out=work).sum((0, 1))

        torch.mul(grad_driven, step, out=grad_u[rows])
        grad_step.addcmul_(grad_driven, x)
        if D is not None and grad_D is not None:
            grad_u[rows].addcmul_(grad_scan, D.to(dtype))
            grad_D += (grad_scan * x).sum((0, 1))
        if gate is not None and y is not None and grad_z is not None:
            if D is not None:
                y.addcmul_(x, D.to(dtype))
            sigmoid = gate.sigmoid()
            grad_z[rows] = grad_out * y * sigmoid * (1 + gate * (1 - sigmoid))
        if delta_softplus:
            grad_step.mul_(softplus_slope(biased))
        if grad_bias is not None:
            grad_bias += grad_step.sum((0, 1))

    return (
        grad_u.to(u.dtype),
        grad_delta.to(delta.dtype),
        grad_A.transpose(1, 2).reshape(A.shape).to(A.dtype),
        grad_B.to(B.dtype),
        grad_C.to(C.dtype),
        u.new_empty(0) if D is None or grad_D is None else grad_D.to(D.dtype),
        u.new_empty(0) if z is None or grad_z is None else grad_z.to(z.dtype),
        u.new_empty(0) if delta_bias is None or grad_bias is None else grad_bias.to(delta_bias.dtype),
    )


class _Buffer:
    """Room for one value a step, row and state, (steps, rows, groups, d_state, channels), used again and again."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._each: dict[int, tuple[Tensor, ...]] = {}

    def of(self, step: Tensor) -> Tensor:
        """Views as much of the room as a chunk of step sizes (steps, rows, ...) fills."""
        steps, rows = step.shape[:2]
        return self._values[:steps, :rows]

    def each(self, step: Tensor, reverse: bool) -> tuple[Tensor, ...]:
        """Views the steps of a chunk one by one; the views, as costly as the arithmetic, are made once."""
        steps, rows = step.shape[:2]
        if rows not in self._each:
            self._each[rows] = self._values[:, :rows].unbind(0)
        views = self._each[rows][:steps]
        return views[::-1] if reverse else views


def _trajectory(
    step: Tensor,
    driven: Tensor,
    rates: Tensor,
    B: Tensor,
    h: Tensor,
    decays: _Buffer,
    states: _Buffer,
    reverse: bool,
) -> Tensor:
    """Computes the decays and states of a chunk in the given buffers; returns the states."""
    torch.mul(step.unsqueeze(-2), rates, out=decays.of(step)).exp2_()
    trajectory = torch.mul(driven.unsqueeze(-2), B.unsqueeze(-1), out=states.of(step))
    for decay_t, state_t in zip(decays.each(step, reverse), states.each(step, reverse), strict=True):
        torch.addcmul(state_t, decay_t, h, out=state_t)
        h = state_t
    return trajectory


def _chunks(length: int, steps: int, reverse: bool) -> list[tuple[int, slice]]:
    """Cuts the sequence into chunks, numbered and listed in scan order."""
    starts = range(0, length, steps)
    slices = [slice(first, min(first + steps, length)) for first in (reversed(starts) if reverse else starts)]
    return list(enumerate(slices))


def _time_major(values: Tensor, times: slice, groups: int) -> Tensor:
    """Views (rows, length, d_inner) as (steps, rows, groups, channels) for a chunk."""
    return values[:, times].unflatten(-1, (groups, -1)).transpose(0, 1)


def grouped_matrix(A: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Turns (d_inner, d_state) into contiguous (groups, d_state, channels)."""
    return A.to(dtype).unflatten(0, (groups, -1)).transpose(1, 2).contiguous()


def _longest_chunk(elements: int) -> int:
    """Steps of a chunk whose start need not be saved: as a step gets cheaper, the calls a chunk weigh more."""
    return CHUNK * max(1, min(4, PART_ELEMENTS // (CHUNK * elements)))
