"""The selective scan in plain torch: chunked in time, recomputed in the backward pass.

The exponentials and products of a chunk are taken in one call each, so that the recurrence costs one fused
multiply-add a step. Forward keeps the state at the start of every chunk only; backward rebuilds the rest chunk by
chunk. So the extra memory is length / CHUNK states and one chunk of work buffers.

Layout: states are (batch, groups, d_state, channels) with channels = d_inner / groups, so that the innermost loop of
every elementwise kernel runs over contiguous channels. Source of the recurrence: see ``reference.py``; the gradients
are its adjoint, derived by hand.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulation_dtype

CHUNK = 16
"""Time steps a chunk: fewer cost dispatch, more fall out of the cache (measured at 384 channels, 16 states)."""

SLAB_ELEMENTS = 1 << 20
"""Elements of one work buffer; a larger batch is worked off in slabs of this size."""

SOFTPLUS_THRESHOLD = 20.0


def num_chunks(length: int) -> int:
    """How many states :func:`forward` saves for a sequence of ``length`` steps."""
    return (length + CHUNK - 1) // CHUNK


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the scan in token-major layout.

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
        save_states: Whether to return the states that backward starts from.

    Returns:
        y in the dtype of ``u``, (batch, length, d_inner); the last state and the states at the starts of the chunks,
        (batch, groups, d_state, channels) and (chunks, batch, groups, d_state, channels), in the accumulation dtype.
        Without ``save_states`` the latter has no elements.
    """
    dtype = accumulation_dtype(u.dtype)
    batch, length, _ = u.shape
    groups = B.shape[2]
    x, B, C = u.to(dtype), B.to(dtype), C.to(dtype)
    step = _step_sizes(delta, delta_bias, delta_softplus, dtype)
    A = _grouped_matrix(A, groups, dtype)
    chunks = num_chunks(length)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last_state = x.new_empty(batch, *A.shape)
    states = x.new_empty(chunks if save_states else 0, batch, *A.shape)
    slab = _slab_size(batch, A.numel())
    decay_buffer, state_buffer = (x.new_empty(CHUNK, slab, *A.shape) for _ in range(2))
    driven = step * x
    for first in range(0, batch, slab):
        rows = slice(first, min(first + slab, batch))
        h = x.new_zeros(rows.stop - rows.start, *A.shape)
        for chunk in range(chunks):
            times = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, length))
            if save_states:
                states[chunk, rows] = h
            _, trajectory = _trajectory(
                _time_major(step, rows, times, groups),
                _time_major(driven, rows, times, groups),
                A,
                B[rows, times].transpose(0, 1),
                h,
                decay_buffer,
                state_buffer,
            )
            out = torch.matmul(C[rows, times].transpose(0, 1).unsqueeze(-2), trajectory)
            y[rows, times] = out.flatten(2).transpose(0, 1)
            h = trajectory[-1].clone()
        last_state[rows] = h
    if D is not None:
        y.addcmul_(x, D.to(dtype))
    if z is not None:
        y.mul_(F.silu(z.to(dtype)))
    return y.to(u.dtype), last_state, states


def backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiates :func:`forward`.

    With the adjoint state g_t = C_t ḡ_t + exp(δ_{t+1} A) g_{t+1}, where ḡ is the gradient of the ungated y::

        dC_t = Σ_d ḡ_t h_t        dB_t = Σ_d g_t δ_t u_t        d(δu)_t = Σ_n g_t B_t
        q_t = g_t exp(δ_t A) h_{t-1}        dδ_t = Σ_n q_t A + u_t d(δu)_t        dA = Σ_t q_t δ_t

    Args:
        grad_y: Gradient of y, (batch, length, d_inner).
        grad_last_state: Gradient of the last state, (batch, groups, d_state, channels), or None for zero.
        states: What forward returned with ``save_states``.
        u: As for :func:`forward`, as are all that follow.
        delta: As for forward.
        A: As for forward.
        B: As for forward.
        C: As for forward.
        D: As for forward.
        z: As for forward.
        delta_bias: As for forward.
        delta_softplus: As for forward.

    Returns:
        The gradients of u, delta, A, B, C, D, z and delta_bias in their dtypes; those of absent inputs are empty.
    """
    dtype = accumulation_dtype(u.dtype)
    batch, length, _ = u.shape
    groups = B.shape[2]
    x, Bf, Cf = u.to(dtype), B.to(dtype), C.to(dtype)
    step = _step_sizes(delta, delta_bias, delta_softplus, dtype)
    Ag = _grouped_matrix(A, groups, dtype)
    driven = step * x
    grad_out = grad_y.to(dtype)
    grad_scan = grad_out if z is None else grad_out * F.silu(z.to(dtype))

    grad_driven, grad_step, y = torch.empty_like(driven), torch.empty_like(driven), driven.new_empty(0)
    if z is not None:
        y = torch.empty_like(driven)
    grad_B, grad_C = (matrix.new_empty(matrix.shape, dtype=dtype) for matrix in (B, C))
    grad_A = torch.zeros_like(Ag)
    slab = _slab_size(batch, Ag.numel())
    decay_buffer, state_buffer, adjoint_buffer = (x.new_empty(CHUNK, slab, *Ag.shape) for _ in range(3))
    for first in range(0, batch, slab):
        rows = slice(first, min(first + slab, batch))
        if grad_last_state is None:
            carry = x.new_zeros(rows.stop - rows.start, *Ag.shape)
        else:
            carry = grad_last_state[rows].to(dtype)
        for chunk in reversed(range(states.shape[0])):
            times = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, length))
            dt, inp, grad = (_time_major(v, rows, times, groups) for v in (step, driven, grad_scan))
            b, c = Bf[rows, times].transpose(0, 1), Cf[rows, times].transpose(0, 1)
            start = states[chunk, rows]
            decay, h = _trajectory(dt, inp, Ag, b, start, decay_buffer, state_buffer)

            # sums over channels go through sum, which adds pairwise: a matrix product would double their error
            work = adjoint_buffer[: len(h), : h.shape[1]]
            grad_C[rows, times] = torch.mul(h, grad.unsqueeze(-2), out=work).sum(-1).transpose(0, 1)
            if z is not None:
                y[rows, times] = torch.matmul(c.unsqueeze(-2), h).flatten(2).transpose(0, 1)
            adjoint = torch.mul(c.unsqueeze(-1), grad.unsqueeze(-2), out=work)
            for t in reversed(range(len(h))):
                adjoint[t].add_(carry)
                carry = decay[t] * adjoint[t]
            grad_driven[rows, times] = torch.matmul(b.unsqueeze(-2), adjoint).flatten(2).transpose(0, 1)

            decay[0].mul_(start)
            decay[1:].mul_(h[:-1])
            sensitivity = decay.mul_(adjoint)
            work = torch.mul(adjoint, inp.unsqueeze(-2), out=h)
            grad_B[rows, times] = work.sum(-1).transpose(0, 1)
            grad_step[rows, times] = torch.mul(sensitivity, Ag, out=work).sum(-2).flatten(2).transpose(0, 1)
            grad_A += torch.mul(sensitivity, dt.unsqueeze(-2), out=work).sum((0, 1))

    grad_u = grad_driven * step
    grad_delta = grad_step.addcmul_(grad_driven, x)
    grad_D, grad_z, grad_bias = (x.new_empty(0) for _ in range(3))
    if D is not None:
        grad_u.addcmul_(grad_scan, D.to(dtype))
        grad_D = (grad_scan * x).sum((0, 1)).to(D.dtype)
    if z is not None:
        if D is not None:
            y.addcmul_(x, D.to(dtype))
        gate = z.to(dtype)
        sigmoid = gate.sigmoid()
        grad_z = (grad_out * y * sigmoid * (1 + gate * (1 - sigmoid))).to(z.dtype)
    if delta_softplus:
        # softplus' = 1 − exp(−softplus), without cancellation where it is small; torch's softplus is linear above 20
        slope = torch.expm1(-step).neg_()
        grad_delta.mul_(slope.masked_fill_(step > SOFTPLUS_THRESHOLD, 1.0))
    if delta_bias is not None:
        grad_bias = grad_delta.sum((0, 1)).to(delta_bias.dtype)
    return (
        grad_u.to(u.dtype),
        grad_delta.to(delta.dtype),
        grad_A.transpose(1, 2).reshape(A.shape).to(A.dtype),
        grad_B.to(B.dtype),
        grad_C.to(C.dtype),
        grad_D,
        grad_z,
        grad_bias,
    )


def _trajectory(
    step: Tensor, driven: Tensor, A: Tensor, B: Tensor, h: Tensor, decay_buffer: Tensor, state_buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes the decays and states of a chunk, (steps, rows, groups, d_state, channels), in the given buffers."""
    steps, rows = step.shape[:2]
    decay = torch.mul(step.unsqueeze(-2), A, out=decay_buffer[:steps, :rows]).exp_()
    states = torch.mul(driven.unsqueeze(-2), B.unsqueeze(-1), out=state_buffer[:steps, :rows])
    for decay_t, state_t in zip(decay.unbind(0), states.unbind(0), strict=True):
        torch.addcmul(state_t, decay_t, h, out=state_t)
        h = state_t
    return decay, states


def _time_major(values: Tensor, rows: slice, times: slice, groups: int) -> Tensor:
    """Views (batch, length, d_inner) as (steps, rows, groups, channels) for a slab and a chunk."""
    return values[rows, times].unflatten(-1, (groups, -1)).transpose(0, 1)


def _grouped_matrix(A: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Turns (d_inner, d_state) into contiguous (groups, d_state, channels)."""
    return A.to(dtype).unflatten(0, (groups, -1)).transpose(1, 2).contiguous()


def _step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, dtype: torch.dtype) -> Tensor:
    """Computes δ, (batch, length, d_inner)."""
    step = delta.to(dtype)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)
    return F.softplus(step) if delta_softplus else step


def _slab_size(batch: int, state_elements: int) -> int:
    """Rows of the batch that fill one work buffer, at least one."""
    return max(1, min(batch, SLAB_ELEMENTS // (CHUNK * state_elements)))
