"""The selective scan in kernels that numba compiles for this processor: one pass over memory, in both directions.

A block of ``LANES`` channels goes through time with its states in the first cache; nothing but inputs and outputs passes
through memory. Forward keeps the states before each chunk, in the layout of ``cpu.py``, and backward computes those
within a chunk again. Numbers are float32 or float64; bfloat16 is read and written as it is.
"""

from collections.abc import Sequence

from torch import Tensor

from ..fused.arguments import address, blocks_of, kernel_dtype, kernel_name, parts_of, place, plain, readable
from ..fused.lanes import LANES
from ..fused.native import aligned, compiled, rooms, threads_for
from ..precision import accumulation_dtype
from . import numba_backward, numba_forward, numba_tangents
from .cpu import CHUNK, LOG2_E, grouped_matrix, num_chunks
from .inputs import Gradients, Inputs, Outputs

__all__ = ["CHUNK", "backward", "forward", "num_chunks", "tangents"]


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan in token-major layout; arguments and results as for :func:`.cpu.forward`."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse = inputs
    dtype = accumulation_dtype(u.dtype)
    batch, length, _ = u.shape
    groups = B.shape[2]
    rates = grouped_matrix(A, groups, dtype) * LOG2_E
    d_state, channels = rates.shape[1:]
    y = u.new_empty(u.shape, dtype=kernel_dtype(u.dtype, dtype))
    last_state = rates.new_empty(batch, *rates.shape)
    states = rates.new_empty(num_chunks(length) if save_states else 0, batch, *rates.shape)
    tensors = [readable(u, dtype), readable(delta, dtype), None if z is None else readable(z, dtype)]
    b, c = (plain(v, dtype) for v in (B, C))
    skip, bias = (None if v is None else plain(v, dtype) for v in (D, delta_bias))
    num_threads = threads_for(batch * groups * blocks_of(channels))
    room, room_bytes = rooms(num_threads, numba_forward.room_rows(d_state), LANES * rates.element_size())
    arguments = [batch, length, groups, d_state, channels, reverse, delta_softplus, save_states]
    arguments += [number for x in tensors for number in place(x)]
    arguments += [address(x) for x in (rates, b, c, skip, bias)]
    arguments += [
        y.data_ptr(),
        y.element_size(),
        last_state.data_ptr(),
        states.data_ptr(),
        aligned(room),
        room_bytes,
    ]
    if y.numel():
        compiled(numba_forward.__name__, kernel_name(dtype)).run(arguments, num_threads)
    elif last_state.numel():
        last_state.zero_()
    return y.to(u.dtype), last_state, states


def backward(grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu.backward`.

    All gradients fall out of one loop, and leaving some away would save next to nothing.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse = inputs
    dtype = accumulation_dtype(u.dtype)
    batch, length, d_inner = u.shape
    groups = B.shape[2]
    matrix = grouped_matrix(A, groups, dtype)
    rates = matrix * LOG2_E
    d_state, channels = rates.shape[1:]
    # a row of the batch is a task; where there are fewer rows than threads, a part of its channels is
    parts, part_blocks = parts_of(batch, groups * blocks_of(channels))

    read = [readable(v, dtype) for v in (u, delta)]
    gate = None if z is None else readable(z, dtype)
    incoming = readable(grad_y, dtype)
    grad_u, grad_delta = (v.new_empty(v.shape, dtype=kernel_dtype(v.dtype, dtype)) for v in (u, delta))
    grad_z = None if z is None else z.new_empty(z.shape, dtype=kernel_dtype(z.dtype, dtype))
    b, c = (plain(v, dtype) for v in (B, C))
    skip, bias = (None if v is None else plain(v, dtype) for v in (D, delta_bias))
    last = None if grad_last_state is None else plain(grad_last_state, dtype)
    grad_A = rates.new_empty(batch, *rates.shape)
    make = rates.new_zeros if parts > 1 else rates.new_empty
    grad_B, grad_C = (make((parts, *v.shape)) for v in (B, C))
    grad_D, grad_bias = (rates.new_empty(batch, d_inner) for _ in range(2))
    num_threads = threads_for(batch * parts)
    rows = numba_backward.room_rows(d_state, part_blocks)
    room, room_bytes = rooms(num_threads, rows, LANES * rates.element_size())
    arguments = [batch, length, groups, d_state, channels, reverse, delta_softplus, parts]
    arguments += [address(x) for x in (rates, matrix, b, c, skip, bias, states, last)]
    arguments += [address(x) for x in (grad_A, grad_B, grad_C, grad_D, grad_bias)]
    arguments += [aligned(room), room_bytes]
    arguments += [n for x in (*read, gate, incoming, grad_u, grad_delta, grad_z) for n in place(x)]
    if u.numel():
        compiled(numba_backward.__name__, kernel_name(dtype)).run(arguments, num_threads)
    return (
        grad_u.to(u.dtype),
        grad_delta.to(delta.dtype),
        grad_A.sum(0).transpose(1, 2).reshape(A.shape).to(A.dtype),
        (grad_B[0] if parts == 1 else grad_B.sum(0)).to(B.dtype),
        (grad_C[0] if parts == 1 else grad_C.sum(0)).to(C.dtype),
        u.new_empty(0) if D is None else grad_D.sum(0).to(D.dtype),
        u.new_empty(0) if z is None or grad_z is None else grad_z.to(z.dtype),
        u.new_empty(0) if delta_bias is None else grad_bias.sum(0).to(delta_bias.dtype),
    )


def tangents(
    values: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None],
    moves: Sequence[Tensor],
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs the scan, without a gate, and differentiates it along several directions.

    Args:
        values: u, the steps δ, their slope by ``delta``, A, B, C and D, all float32 or all float64; shapes as in
            :class:`.Inputs`.
        moves: Directions of u, ``delta``, B and C, (directions, *shape).
        reverse: Whether time runs from the last token to the first.

    Returns:
        y, the last state as of :func:`forward`, and how both move, (directions, *shape).
    """
    u, step, slope, A, B, C, D = values
    batch, length, _ = u.shape
    directions, groups = len(moves[0]), B.shape[2]
    matrix = grouped_matrix(A, groups, u.dtype)
    rates = matrix * LOG2_E
    d_state, channels = rates.shape[1:]
    read: list[Tensor | None] = [plain(x, u.dtype) for x in (rates, matrix, B, C)]
    read.append(None if D is None else plain(D, u.dtype))
    read += [plain(x, u.dtype) for x in (step, slope, u, moves[2], moves[3])]
    y, last_state = u.new_empty(u.shape), rates.new_empty(batch, *rates.shape)
    y_moved, last_moved = (x.new_empty(directions, *x.shape) for x in (y, last_state))
    num_threads = threads_for(batch * groups * blocks_of(channels))
    rows = numba_tangents.room_rows(d_state, directions)
    room, room_bytes = rooms(num_threads, rows, LANES * rates.element_size())
    arguments = [batch, length, groups, d_state, channels, directions, reverse]
    arguments += [address(x) for x in (*read, y, last_state, y_moved, last_moved)]
    arguments += [aligned(room), room_bytes]
    moving = [readable(x, u.dtype) for x in (moves[1], moves[0])]
    for x in moving:
        arguments += [x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:-1])]
    compiled(numba_tangents.__name__, kernel_name(u.dtype)).run(arguments, num_threads)
    return y, last_state, y_moved, last_moved
