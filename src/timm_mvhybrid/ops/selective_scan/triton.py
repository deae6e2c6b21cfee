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

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..precision import accumulation_dtype
from .triton_backward import backward_kernel
from .triton_forward import forward_kernel

CHUNK = 8
"""Steps from one saved state to the next. Twice as many would halve what is saved, 8 bytes for each step and channel
at 16 states, and make backward compute the states two and a half times instead of one and a half."""

STEPS = 4
"""Steps a tile: with 8, backward would spill and forward would leave room for fewer programs."""


class Launch(NamedTuple):
    """A kernel with all that it is launched with."""

    kernel: Any
    programs: int
    arguments: dict[str, Tensor | int | None]
    constants: dict[str, Any]
    num_warps: int


def num_chunks(length: int) -> int:
    """How many states forward saves: one before each chunk."""
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
    reverse: bool = False,
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
        reverse: Whether time runs from the last token to the first.

    Returns:
        y in the dtype of ``u``, (batch, length, d_inner); the last state and the states before the chunks,
        (batch, groups, d_state, channels) and (chunks, batch, groups, d_state, channels), in the accumulation dtype.
        Without ``save_states`` the latter has no elements.
    """
    launch = plan_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, save_states, reverse)
    _run(u, launch)
    y, last_state, states = (launch.arguments[name] for name in ("y", "last_state", "states"))
    return y, last_state, states  # type: ignore[return-value]  # the arguments hold numbers too


def plan_forward(
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
    reverse: bool = False,
) -> Launch:
    """Allocates what :func:`forward` returns and says how its kernel is launched; tensors may be on meta."""
    batch, length, d_inner = u.shape
    groups, d_state = B.shape[2:]
    state = (batch, groups, d_state, d_inner // groups)
    dtype = accumulation_dtype(u.dtype)
    arguments: dict[str, Tensor | int | None] = {
        **_inputs(u, delta, A, B, C, D, z, delta_bias),
        "y": u.new_empty(u.shape),
        "last_state": u.new_empty(state, dtype=dtype),
        "states": u.new_empty((num_chunks(length) if save_states else 0, *state), dtype=dtype),
    }
    constants = {**_constants(d_state, delta_softplus, reverse), "SAVE_STATES": save_states}
    return _launch(forward_kernel, arguments, constants, B, d_inner)


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
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiates :func:`forward`; the formulas are those of ``cpu``.

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
        reverse: As for forward.

    Returns:
        The gradients of u, delta, A, B, C, D, z and delta_bias in their dtypes; those of absent inputs are empty.
    """
    launch = plan_backward(
        grad_y, grad_last_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse
    )
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


def plan_backward(
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
    reverse: bool = False,
) -> Launch:
    """Allocates the gradients and partial sums and says how the kernel is launched; tensors may be on meta."""
    batch, _, d_inner = u.shape
    groups, d_state = B.shape[2:]
    constants = _constants(d_state, delta_softplus, reverse)
    blocks = _num_blocks(d_inner // groups, constants)

    def partial(number: int, x: Tensor) -> Tensor:
        return x.new_empty((number, *x.shape), dtype=states.dtype)

    arguments: dict[str, Tensor | int | None] = {
        **_inputs(u, delta, A, B, C, D, z, delta_bias),
        "grad_y": grad_y,
        **_strides("grad_y", grad_y, ("batch", "step", "channel")),
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


def _inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> dict[str, Tensor | int | None]:
    """Names what both kernels read; only the parameters are made contiguous, if they are not."""
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
        **_strides("u", u, axes),
        **_strides("delta", delta, axes),
        **_strides("B", B, matrix_axes),
        **_strides("C", C, matrix_axes),
        **_strides("z", z, axes),
        "batch_size": u.shape[0],
        "length": u.shape[1],
        "groups": B.shape[2],
        "channels": u.shape[2] // B.shape[2],
    }


def _strides(name: str, tensor: Tensor | None, axes: tuple[str, ...]) -> dict[str, int]:
    """Names the strides of a tensor, in elements; zero for an absent one."""
    strides = [0] * len(axes) if tensor is None else tensor.stride()
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}


def _constants(d_state: int, delta_softplus: bool, reverse: bool) -> dict[str, Any]:
    """Chooses what a kernel is compiled for: as many channels as fill a warp, twice where states are few."""
    states = triton.next_power_of_2(d_state)
    return {
        "D_STATE": d_state,
        "DELTA_SOFTPLUS": delta_softplus,
        "REVERSE": reverse,
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
    return Launch(kernel, programs, arguments, constants, min(16, max(1, elements // 256)))


def _run(u: Tensor, launch: Launch) -> None:
    """Launches a kernel where ``u`` lies; one without programs has nothing to do."""
    if u.device.type == "cpu" and isinstance(launch.kernel, triton.JITFunction):
        raise RuntimeError(
            'the Triton kernels need a GPU, but u is on the CPU; choose the "cpu" implementation, or set '
            "TRITON_INTERPRET=1 before the first call to run them in Triton's interpreter"
        )
    if launch.programs:
        with torch.cuda.device(u.device) if u.is_cuda else contextlib.nullcontext():
            launch.kernel[(launch.programs,)](
                **launch.arguments, **launch.constants, num_warps=launch.num_warps, enable_fp_fusion=True
            )
