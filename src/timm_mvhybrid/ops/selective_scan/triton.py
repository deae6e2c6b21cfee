"""The selective scan in Triton: what ``cpu`` computes, in one kernel forward and one backward.

A program is one warp that owns 16 channels of one sequence and walks it from end to end, its states in registers. At
the model's size (64 sequences of 257 tokens, 384 channels of 16 states) that makes 1536 programs, some twelve for
each multiprocessor of an H200, where the registers hold sixteen of the forward and eight of the backward kernel.
Whole channels to a thread would make half as many, so that some schedulers would have twice the work of others. Four
threads share a channel's states and each holds two channels: B and C are then fetched for two channels at a time,
and a sum over states costs two shuffles.

What to expect there, by arithmetic: forward moves 38 MB (bfloat16) or 76 MB (float32), 9 or 18 µs, and to train saves
50 MB of states; but it takes one exponential for each state and step, 101 million, 27 µs, and some 13 instructions
around each, 46 µs. Backward takes an exponential one and a half times and some 38 instructions, 130 µs. It moves the
inputs, the saved states and five gradients, and writes 50 MB of partial sums for the gradients of B and C, which
``torch.sum`` reads: each is d_inner / 16 times as large as the gradient itself. There are no atomic additions, so that
gradients are the same on every run.

The tiling follows from ``d_state`` alone, without timing, so that a sequence's result does not depend on its batch.
float64 runs too, for checks, but its backward pass does not fit in the registers.
"""

from typing import Any

import triton
from torch import Tensor

from ..precision import accumulation_dtype
from ..triton_launch import Arguments, Launch, check_device, run, strides
from .inputs import Gradients, Inputs, Outputs
from .triton_backward import backward_kernel
from .triton_forward import forward_kernel

CHUNK = 8
"""Steps from one saved state to the next. Twice as many would halve what is saved, 8 bytes for each step and channel
at 16 states, and make backward compute the states two and a half times instead of one and a half."""

STEPS = 4
"""Steps a tile: with 8, backward would spill and forward would leave room for fewer programs."""


def num_chunks(length: int) -> int:
    """How many states forward saves: one before each chunk."""
    return (length + CHUNK - 1) // CHUNK


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan; arguments and results as for :func:`.cpu.forward`."""
    launch = plan_forward(inputs, save_states)
    _run(inputs.u, launch)
    y, last_state, states = (launch.arguments[name] for name in ("y", "last_state", "states"))
    return y, last_state, states  # type: ignore[return-value]  # the arguments hold numbers too


def plan_forward(inputs: Inputs, save_states: bool) -> Launch:
    """Allocates what :func:`forward` returns and says how its kernel is launched; tensors may be on meta."""
    u, B = inputs.u, inputs.B
    batch, length, d_inner = u.shape
    groups, d_state = B.shape[2:]
    state = (batch, groups, d_state, d_inner // groups)
    dtype = accumulation_dtype(u.dtype)
    arguments: Arguments = {
        **_read(inputs),
        "y": u.new_empty(u.shape),
        "last_state": u.new_empty(state, dtype=dtype),
        "states": u.new_empty((num_chunks(length) if save_states else 0, *state), dtype=dtype),
    }
    constants = {**_constants(inputs), "SAVE_STATES": save_states}
    return _launch(forward_kernel, arguments, constants, B, d_inner)


def backward(grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments, results and formulas are those of :func:`.cpu.backward`."""
    u, _, A, B, C, D, z, delta_bias, _, _ = inputs
    launch = plan_backward(grad_y, grad_last_state, states, inputs)
    _run(u, launch)
    sums: dict[str, Any] = launch.arguments
    return (
        sums["grad_u"],
        sums["grad_delta"],
        *(sums[f"grad_{name}"].sum(0).to(x.dtype) for name, x in (("A", A), ("B", B), ("C", C))),
        u.new_empty(0) if D is None else sums["grad_D"].sum(0).to(D.dtype),
        u.new_empty(0) if z is None else sums["grad_z"],
        u.new_empty(0) if delta_bias is None else sums["grad_delta_bias"].sum(0).to(delta_bias.dtype),
    )


def plan_backward(grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs) -> Launch:
    """Allocates the gradients and partial sums and says how the kernel is launched; tensors may be on meta."""
    u, delta, A, B, C, D, z, delta_bias, _, _ = inputs
    batch, _, d_inner = u.shape
    constants = _constants(inputs)
    blocks = _num_blocks(d_inner // B.shape[2], constants)

    def partial(number: int, x: Tensor) -> Tensor:
        return x.new_empty((number, *x.shape), dtype=states.dtype)

    arguments: Arguments = {
        **_read(inputs),
        "grad_y": grad_y,
        **strides("grad_y", grad_y, ("batch", "step", "channel")),
        "grad_last_state": None if grad_last_state is None else grad_last_state.contiguous(),
        "states": states,
        "grad_u": u.new_empty(u.shape),
        "grad_delta": delta.new_empty(delta.shape),
        "grad_A": partial(batch, A),
        "grad_B": partial(blocks, B),
        "grad_C": partial(blocks, C),
        "grad_D": None if D is None else partial(batch, D),
        "grad_z": None if z is None else z.new_empty(z.shape),
        "grad_delta_bias": None if delta_bias is None else partial(batch, delta_bias),
    }
    return _launch(backward_kernel, arguments, constants, B, d_inner)


def _read(inputs: Inputs) -> Arguments:
    """Names what both kernels read; only the parameters are made contiguous, if they are not."""
    u, delta, A, B, C, D, z, delta_bias, _, _ = inputs
    axes, matrix_axes = ("batch", "step", "channel"), ("batch", "step", "group", "state")
    return {
        "u": u,
        "delta": delta,
        "A": A.contiguous(),
        "B": B,
        "C": C,
        "D": None if D is None else D.contiguous(),
        "z": z,
        "delta_bias": None if delta_bias is None else delta_bias.contiguous(),
        **strides("u", u, axes),
        **strides("delta", delta, axes),
        **strides("B", B, matrix_axes),
        **strides("C", C, matrix_axes),
        **strides("z", z, axes),
        "batch_size": u.shape[0],
        "length": u.shape[1],
        "groups": B.shape[2],
        "channels": u.shape[2] // B.shape[2],
    }


def _constants(inputs: Inputs) -> dict[str, Any]:
    """Chooses what a kernel is compiled for: as many channels as fill a warp, twice where states are few."""
    d_state = inputs.B.shape[3]
    states = triton.next_power_of_2(d_state)
    return {
        "D_STATE": d_state,
        "DELTA_SOFTPLUS": inputs.delta_softplus,
        "REVERSE": inputs.reverse,
        "CHUNK": CHUNK,
        "STEPS": STEPS,
        "REPEAT": 2 if states <= 16 else 1,
        "STATES": states,
        "LANES": max(8, 32 // states),
    }


def _num_blocks(channels: int, constants: dict[str, Any]) -> int:
    """Blocks that a group's channels are dealt out in, one to a program."""
    block = constants["REPEAT"] * constants["LANES"]
    return -(-channels // block)


def _launch(
    kernel: Any, arguments: dict[str, Any], constants: dict[str, Any], B: Tensor, d_inner: int
) -> Launch:
    """Deals out programs by sequence, group and block; more than 8 states of a step to a thread would spill."""
    batch, _, groups, _ = B.shape
    elements = constants["REPEAT"] * constants["STATES"] * constants["LANES"]
    programs = batch * groups * _num_blocks(d_inner // groups, constants)
    options = {"num_warps": min(16, max(1, elements // 256))}
    return Launch(kernel, programs, arguments, constants, options)


def _run(u: Tensor, launch: Launch) -> None:
    check_device("u", u, interpreted=not isinstance(launch.kernel, triton.JITFunction))
    run(u, launch)
