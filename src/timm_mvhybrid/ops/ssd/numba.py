"""The state-space-duality scan in kernels that numba compiles for this processor, and Hydra's two of them in one call.

As ``selective_scan/numba.py``. Numbers are float32 or float64; bfloat16 is read as it is.
"""

import torch
from torch import Tensor

from ..fused.arguments import address, blocks_of, kernel_name, parts_of, place, plain, readable
from ..fused.lanes import LANES
from ..fused.native import aligned, compiled, rooms, threads_for
from ..precision import accumulation_dtype
from ..step_sizes import biased_steps, softplus_slope, write_step_sizes
from . import numba_backward, numba_forward
from .cpu import num_chunks
from .inputs import Gradients, Inputs, Outputs

__all__ = ["add_gradients", "add_scans", "backward", "forward", "num_chunks", "step_sizes"]


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan; results as for :func:`.cpu.forward`."""
    x, dt, A, B, C, D, dt_bias, dt_softplus, reverse = inputs
    dtype = accumulation_dtype(x.dtype)
    y = torch.zeros_like(x, dtype=dtype) if D is None else x.to(dtype) * D.to(dtype).unsqueeze(-1)
    y = y.contiguous()
    step = step_sizes(dt.unsqueeze(2), dt_bias, dt_softplus, dtype)
    states, last = add_scans(
        y, x, step, A, B.unsqueeze(2), C.unsqueeze(2), reverse=reverse, shift=0, save_states=save_states
    )
    return y.to(x.dtype), last, states[0]


def backward(grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu.backward`."""
    x, dt, A, B, C, D, dt_bias, dt_softplus, reverse = inputs
    dtype = accumulation_dtype(x.dtype)
    wide = grad_y.to(dtype)
    grad_x = torch.zeros_like(x, dtype=dtype) if D is None else wide * D.to(dtype).unsqueeze(-1)
    grad_x = grad_x.contiguous()
    step = step_sizes(dt.unsqueeze(2), dt_bias, dt_softplus, dtype)
    grad_step, grad_A, grad_B, grad_C = add_gradients(
        grad_x,
        grad_y,
        states.unsqueeze(0),
        (x, step, A, B.unsqueeze(2), C.unsqueeze(2)),
        grad_last_state=grad_last_state,
        reverse=reverse,
        shift=0,
    )
    grad_dt = grad_step.squeeze(2)
    if dt_softplus:
        grad_dt = grad_dt * softplus_slope(biased_steps(dt, dt_bias, dtype))
    return (
        grad_x.to(x.dtype),
        grad_dt.to(dt.dtype),
        grad_A.to(A.dtype),
        grad_B.squeeze(2).to(B.dtype),
        grad_C.squeeze(2).to(C.dtype),
        x.new_empty(0) if D is None else (wide * x).sum((0, 1, 3)).to(D.dtype),
        x.new_empty(0) if dt_bias is None else grad_dt.sum((0, 1)).to(dt_bias.dtype),
    )


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dtype: torch.dtype) -> Tensor:
    """Computes δ, contiguous, in a dtype."""
    step = dt.new_empty(dt.shape, dtype=dtype)
    write_step_sizes(step, dt, dt_bias, dt_softplus)
    return step


def add_scans(
    y: Tensor,
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    reverse: bool,
    shift: int,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """Adds scans of one or two directions to y, in place.

    Args:
        y: Contiguous, in the accumulation dtype, (batch, length, heads, headdim).
        x: Input, of the same shape.
        step: δ, contiguous, in the accumulation dtype, (batch, length, directions, heads).
        A: Decay rates, (heads,).
        B: Input matrices, (batch, length, directions, groups, d_state).
        C: Output matrices, of the shape of ``B``.
        reverse: Whether the first direction's time runs from the last token to the first; the second's runs against it.
        shift: Tokens by which a direction's output is late.
        save_states: Whether to keep the states before each chunk.

    Returns:
        These, (directions, chunks, batch, heads, headdim, d_state) but with (d_state, headdim) in memory, no chunks
        unless they are saved; and the last state of one direction, (batch, heads, headdim, d_state).
    """
    batch, length, heads, headdim = x.shape
    directions, groups, d_state = B.shape[2:]
    dtype = y.dtype
    decay = torch.exp(step * A.to(dtype))
    b, c = plain(B, dtype), plain(C, dtype)
    tokens, sums = readable(x.flatten(2), dtype), y.flatten(2)
    chunks = num_chunks(length) if save_states else 0
    states = y.new_empty(directions, chunks, batch, heads, headdim, d_state)
    last = y.new_empty(batch if directions == 1 else 0, heads, d_state, headdim)
    # a row of the batch is a task; where there are fewer rows than threads, a part of its heads is
    parts, part_heads = parts_of(batch, heads)
    num_threads = threads_for(batch * parts)
    rows = numba_forward.room_rows(d_state, blocks_of(headdim), part_heads)
    room, room_bytes = rooms(num_threads, rows, LANES * y.element_size())
    arguments = [
        batch,
        length,
        heads,
        headdim,
        groups,
        d_state,
        directions,
        reverse,
        shift,
        save_states,
        parts,
    ]
    arguments += [address(v) for v in (step, decay, b, c, states)]
    arguments += [last.data_ptr() if directions == 1 else 0, aligned(room), room_bytes]
    arguments += [number for v in (tokens, sums) for number in place(v)]
    if y.numel():
        compiled(numba_forward.__name__, kernel_name(dtype)).run(arguments, num_threads)
    return states, last.mT.contiguous()


def add_gradients(
    grad_x: Tensor,
    grad_y: Tensor,
    states: Tensor,
    scanned: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    *,
    grad_last_state: Tensor | None,
    reverse: bool,
    shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiates :func:`add_scans`.

    Args:
        grad_x: What x's gradient is added to, in place: contiguous, in the accumulation dtype.
        grad_y: Gradient of y.
        states: Those that were saved.
        scanned: x, step, A, B and C.
        grad_last_state: Gradient of the last state of one direction; None stands for zero.
        reverse: As forward.
        shift: As forward.

    Returns:
        Gradients of step, A (float64), B and C in the accumulation dtype.
    """
    x, step, A, B, C = scanned
    batch, length, heads, headdim = x.shape
    directions, groups, d_state = B.shape[2:]
    dtype = step.dtype
    decay = torch.exp(step * A.to(dtype))
    b, c = plain(B, dtype), plain(C, dtype)
    tokens, grad_tokens = (readable(v.flatten(2), dtype) for v in (x, grad_y))
    last = None if grad_last_state is None else plain(grad_last_state.mT, dtype)
    parts, part_heads = parts_of(batch, heads)
    grad_step, grad_log = (torch.empty_like(step) for _ in range(2))
    make = b.new_zeros if parts > 1 else b.new_empty
    grad_B, grad_C = (make((parts, *b.shape)) for _ in range(2))
    num_threads = threads_for(batch * parts)
    rows = numba_backward.room_rows(d_state, blocks_of(headdim), part_heads)
    room, room_bytes = rooms(num_threads, rows, LANES * step.element_size())
    arguments = [batch, length, heads, headdim, groups, d_state, directions, reverse, shift, parts]
    arguments += [address(v) for v in (step, decay, b, c, states, last, grad_step, grad_log, grad_B, grad_C)]
    arguments += [aligned(room), room_bytes]
    arguments += [number for v in (tokens, grad_tokens, grad_x.flatten(2)) for number in place(v)]
    if grad_x.numel():
        compiled(numba_backward.__name__, kernel_name(dtype)).run(arguments, num_threads)
    rates = grad_log.double() * step
    return (
        grad_step.add_(grad_log * A.to(dtype)),
        rates.sum((0, 1, 2)),
        grad_B[0] if parts == 1 else grad_B.sum(0),
        grad_C[0] if parts == 1 else grad_C.sum(0),
    )
