"""The scan with complex poles in kernels that numba compiles for this processor: one pass over memory, in both directions.

As ``selective_scan/numba.py``. Forward keeps the states before each chunk, in the layout of ``cpu.py``, and backward
computes those within a chunk again. Numbers are float32 or float64; bfloat16 is read and written as it is.
"""

import math

from torch import Tensor

from ..fused.arguments import address, blocks_of, kernel_dtype, kernel_name, parts_of, place, plain, readable
from ..fused.lanes import LANES
from ..fused.native import aligned, compiled, rooms, threads_for
from ..precision import accumulation_dtype
from ..selective_scan.cpu import grouped_matrix
from . import numba_backward, numba_forward
from .cpu import LOG2_E, doubled, num_chunks
from .inputs import Gradients, Inputs, Outputs

__all__ = ["backward", "forward", "num_chunks"]


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan in token-major layout; arguments and results as for :func:`.cpu.forward`."""
    u, delta, A, w, B, C, D, delta_bias, reverse = inputs
    dtype = accumulation_dtype(u.dtype)
    batch, length, _ = u.shape
    groups = B.shape[2]
    rates = grouped_matrix(A, groups, dtype) * LOG2_E
    angles = grouped_matrix(w, groups, dtype) / math.pi
    pairs, channels = rates.shape[1:]
    y = u.new_empty(u.shape, dtype=kernel_dtype(u.dtype, dtype))
    states = rates.new_empty(num_chunks(length) if save_states else 0, batch, groups, 2 * pairs, channels)
    u, delta = (readable(x, dtype) for x in (u, delta))
    b, c = plain(B, dtype), doubled(plain(C, dtype))
    skip, bias = (None if v is None else plain(v, dtype) for v in (D, delta_bias))
    num_threads = threads_for(batch * groups * blocks_of(channels))
    room, room_bytes = rooms(num_threads, numba_forward.room_rows(pairs), LANES * rates.element_size())
    arguments = [batch, length, groups, pairs, channels, reverse, save_states]
    arguments += [address(x) for x in (rates, angles, b, c, skip, bias, states)]
    arguments += [aligned(room), room_bytes]
    arguments += [number for x in (u, delta, y) for number in place(x)]
    if y.numel():
        compiled(numba_forward.__name__, kernel_name(dtype)).run(arguments, num_threads)
    return y.to(inputs.u.dtype), states


def backward(grad_y: Tensor, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu.backward`."""
    u, delta, A, w, B, C, D, delta_bias, reverse = inputs
    dtype = accumulation_dtype(u.dtype)
    batch, length, d_inner = u.shape
    groups = B.shape[2]
    matrix, frequencies = (grouped_matrix(x, groups, dtype) for x in (A, w))
    rates, angles = matrix * LOG2_E, frequencies / math.pi
    pairs, channels = rates.shape[1:]
    # a row of the batch is a task; where there are fewer rows than threads, a part of its channels is
    parts, part_blocks = parts_of(batch, groups * blocks_of(channels))

    read = [readable(v, dtype) for v in (u, delta, grad_y)]
    grad_u, grad_delta = (v.new_empty(v.shape, dtype=kernel_dtype(v.dtype, dtype)) for v in (u, delta))
    b, c = plain(B, dtype), doubled(plain(C, dtype))
    skip, bias = (None if v is None else plain(v, dtype) for v in (D, delta_bias))
    grad_A, grad_w = (rates.new_empty(batch, *rates.shape) for _ in range(2))
    make = rates.new_zeros if parts > 1 else rates.new_empty
    grad_B, grad_C = (make((parts, *v.shape)) for v in (B, C))
    grad_D, grad_bias = (rates.new_empty(batch, d_inner) for _ in range(2))
    num_threads = threads_for(batch * parts)
    rows = numba_backward.room_rows(pairs, part_blocks)
    room, room_bytes = rooms(num_threads, rows, LANES * rates.element_size())
    arguments = [batch, length, groups, pairs, channels, reverse, parts]
    arguments += [address(x) for x in (rates, angles, matrix, frequencies, b, c, skip, bias, states)]
    arguments += [address(x) for x in (grad_A, grad_w, grad_B, grad_C, grad_D, grad_bias)]
    arguments += [aligned(room), room_bytes]
    arguments += [number for x in (*read, grad_u, grad_delta) for number in place(x)]
    if u.numel():
        compiled(numba_backward.__name__, kernel_name(dtype)).run(arguments, num_threads)
    return (
        grad_u.to(u.dtype),
        grad_delta.to(delta.dtype),
        grad_A.sum(0).transpose(1, 2).reshape(A.shape).to(A.dtype),
        grad_w.sum(0).transpose(1, 2).reshape(w.shape).to(w.dtype),
        (grad_B[0] if parts == 1 else grad_B.sum(0)).to(B.dtype),
        doubled(grad_C[0] if parts == 1 else grad_C.sum(0)).to(C.dtype),
        u.new_empty(0) if D is None else grad_D.sum(0).to(D.dtype),
        u.new_empty(0) if delta_bias is None else grad_bias.sum(0).to(delta_bias.dtype),
    )
