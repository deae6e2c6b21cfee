"""The state-space-duality scan in Triton: what ``cpu`` computes, in one kernel forward and two backward.

Forward takes one program a head and sequence: 1536 at the model's pretraining size (128 sequences of both directions,
12 heads of 64 channels, 64 states), more than ten for each multiprocessor, so that chunks need not be spread too.
Chunks of 64 steps make every product one of 64 × 64 × 64, the least that fills a warp group's tensor cores; shorter
ones would double the states saved, longer ones the scores. At length 257 forward reads and writes 0.1 GB and
backward, which is dealt by chunks, 0.4 GB: the states and their gradients are most of it, 100 MB each, and are still
less than gradients of B and C for every head would be.

All choices follow from shapes and dtypes, none from timing, so that a result is the same on every run.
"""

import contextlib
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import accumulation_dtype
from .triton_backward import chunk_gradient_kernel, state_gradient_kernel
from .triton_forward import INTERPRETED, forward_kernel

CHUNK = 64
"""Steps a chunk."""

ENOUGH_PROGRAMS = 512
"""Fewer programs than about four a multiprocessor leave some idle; backward then shares a group's heads out."""

_TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class Launch(NamedTuple):
    """A kernel with all that it is launched with."""

    kernel: Any
    programs: int
    arguments: dict[str, Tensor | int | None]
    constants: dict[str, Any]
    num_warps: int


def num_chunks(length: int) -> int:
    """How many states forward saves: one at each boundary between chunks, as the first chunk starts from zero."""
    return (length - 1) // CHUNK


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
        y in the dtype of ``x``, (batch, length, heads, headdim); the last state and the states between the chunks,
        (batch, heads, headdim, d_state) and (chunks − 1, batch, heads, headdim, d_state), in the accumulation dtype.
        Without ``save_states`` the latter has no elements.
    """
    launch = plan_forward(x, dt, A, B, C, D, dt_bias, dt_softplus, save_states)
    _run(x, launch)
    y, last_state, states = (launch.arguments[name] for name in ("y", "last_state", "states"))
    return y, last_state, states  # type: ignore[return-value]  # the arguments hold numbers too


def plan_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    save_states: bool,
) -> Launch:
    """Allocates what :func:`forward` returns and says how its kernel is launched; tensors may be on the meta device."""
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    dtype = accumulation_dtype(x.dtype)
    state = (batch, heads, headdim, d_state)
    constants = _constants(dtype, dt_softplus, headdim, d_state, x, B, C)
    arguments = {
        "x": x,
        "dt": dt,
        "A": A.contiguous(),
        "B": B,
        "C": C,
        "D": None if D is None else D.contiguous(),
        "dt_bias": None if dt_bias is None else dt_bias.contiguous(),
        "y": x.new_empty(x.shape),
        "last_state": x.new_empty(state, dtype=dtype),
        "states": x.new_empty((num_chunks(length) if save_states else 0, *state), dtype=dtype),
        "length": length,
        "heads": heads,
        "heads_per_group": heads // groups,
        "headdim": headdim,
        "d_state": d_state,
        **_strides("x", x, ("batch", "step", "head", "channel")),
        **_strides("dt", dt, ("batch", "step", "head")),
        **_strides("B", B, ("batch", "step", "group", "state")),
        **_strides("C", C, ("batch", "step", "group", "state")),
    }
    programs = batch * heads * triton.cdiv(headdim, constants["BLOCK_P"])
    return Launch(forward_kernel, programs, arguments, {**constants, "SAVE_STATES": save_states}, 4)


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
    launches = plan_backward(grad_y, grad_last_state, states, x, dt, A, B, C, D, dt_bias, dt_softplus)
    for launch in launches:
        _run(x, launch)
    partial: dict[str, Any] = launches[-1].arguments

    def gather(name: str, like: Tensor | None, kept: tuple[int, ...]) -> Tensor:
        if like is None:
            return x.new_empty(0)
        total = partial[name]
        summed = [axis for axis in range(total.ndim) if axis not in kept]
        if all(total.shape[axis] == 1 for axis in summed):
            total = total.squeeze(summed)
        else:
            total = total.sum(summed)
        return total.to(like.dtype)

    return (
        partial["grad_x"],
        gather("grad_dt", dt, (1, 2, 3)),
        gather("grad_A", A, (2,)),
        gather("grad_B", B, (1, 2, 3, 4)),
        gather("grad_C", C, (1, 2, 3, 4)),
        gather("grad_D", D, (2,)),
        gather("grad_dt_bias", dt_bias, (2,)),
    )


def plan_backward(
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
) -> tuple[Launch, Launch]:
    """Allocates what :func:`backward` sums up and says how its kernels are launched, one after the other."""
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    dtype = accumulation_dtype(x.dtype)
    constants = _constants(dtype, dt_softplus, headdim, d_state, grad_y, x, B, C)
    blocks = triton.cdiv(headdim, constants["BLOCK_P"])
    chunks = num_chunks(length) + 1
    splits = _splits(batch * chunks * groups, heads // groups)

    shared = {
        "grad_y": grad_y,
        "grad_last_state": grad_last_state,
        "grad_states": torch.empty_like(states),
        "dt": dt,
        "A": A.contiguous(),
        "C": C,
        "dt_bias": None if dt_bias is None else dt_bias.contiguous(),
        "length": length,
        "heads": heads,
        "heads_per_group": heads // groups,
        "headdim": headdim,
        "d_state": d_state,
        **_strides("grad", grad_y, ("batch", "step", "head", "channel")),
        **_strides("last", grad_last_state, ("batch", "head", "channel", "column")),
        **_strides("dt", dt, ("batch", "step", "head")),
        **_strides("C", C, ("batch", "step", "group", "state")),
    }
    # a whole sum is rounded by the kernel that has it, a partial one not
    matrix = B.new_empty((splits, *B.shape), dtype=B.dtype if splits == 1 else dtype)
    partial = x.new_empty((chunks, batch, heads, blocks), dtype=torch.float64)
    own = {
        "states": states,
        "x": x,
        "B": B,
        "D": None if D is None else D.contiguous(),
        "grad_x": x.new_empty(x.shape),
        "grad_dt": dt.new_empty((blocks, *dt.shape), dtype=dt.dtype if blocks == 1 else dtype),
        "grad_A": partial,
        "grad_B": matrix,
        "grad_C": C.new_empty(matrix.shape, dtype=C.dtype if splits == 1 else dtype),
        "grad_D": None if D is None else torch.empty_like(partial),
        "grad_dt_bias": None if dt_bias is None else torch.empty_like(partial),
        "batch_size": batch,
        "groups": groups,
        "splits": splits,
        **_strides("x", x, ("batch", "step", "head", "channel")),
        **_strides("B", B, ("batch", "step", "group", "state")),
    }
    walks = batch * heads * blocks if chunks > 1 else 0
    return (
        Launch(state_gradient_kernel, walks, shared, constants, 4),
        Launch(chunk_gradient_kernel, batch * chunks * groups * splits, {**shared, **own}, constants, 8),
    )


def _run(x: Tensor, launch: Launch) -> None:
    """Launches a kernel where ``x`` lies; without programs there is nothing to do."""
    if x.device.type == "cpu" and not INTERPRETED:
        raise RuntimeError(
            'the Triton kernels need a GPU, but x is on the CPU; choose the "cpu" implementation, or set '
            "TRITON_INTERPRET=1 before the first call to run them in Triton's interpreter"
        )
    if launch.programs:
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            launch.kernel[(launch.programs,)](
                **launch.arguments, **launch.constants, num_warps=launch.num_warps
            )


def _constants(
    dtype: torch.dtype, dt_softplus: bool, headdim: int, d_state: int, *operands: Tensor
) -> dict[str, Any]:
    """Chooses what the kernels are compiled for: blocks of at least 16, the least that tensor cores multiply."""
    dtypes = {operand.dtype for operand in operands}
    half = len(dtypes) == 1 and dtypes <= {torch.float16, torch.bfloat16}
    return {
        "DT_SOFTPLUS": dt_softplus,
        "OPERAND": _TRITON_DTYPES[dtypes.pop() if half else dtype],
        "WIDE": _TRITON_DTYPES[dtype],
        "CHUNK": CHUNK,
        "BLOCK_P": min(64, max(16, triton.next_power_of_2(headdim))),
        "BLOCK_N": max(16, triton.next_power_of_2(d_state)),
    }


def _strides(name: str, tensor: Tensor | None, axes: tuple[str, ...]) -> dict[str, int]:
    """Names the strides of a tensor, in elements; zero for an absent one."""
    strides = [0] * len(axes) if tensor is None else tensor.stride()
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}


def _splits(programs: int, heads: int) -> int:
    """Into how many equal parts a group's heads are shared out, so that there are enough programs."""
    return next(
        n for n in range(1, heads + 1) if heads % n == 0 and (programs * n >= ENOUGH_PROGRAMS or n == heads)
    )
