"""The state-space-duality scan in Triton: what ``cpu`` computes, in two kernels forward and five backward.

Chunks of 64 steps make the products the least that fill a warp group's tensor cores; shorter ones would double the
states saved, longer ones the scores. Forward takes one program for 32 channels of a head and sequence, which walks the
chunks: 1536 programs at the model's pretraining size (64 sequences, length 257, 12 heads of 64 channels, 64 states;
each direction is a scan), so that the chunks need not be spread too. Twice the channels would share the scores but
spill. In bfloat16 forward moves 50 MB for x and y and 50 MB for the states there; backward, which reads these twice,
0.4 GB. Backward deals out chunks. The gradients of B and C are summed over heads in registers: a row for every head
would be another 0.2 GB.

bfloat16 fits the registers with 32 channels, 64 states and 4 warps; wider operands and more states take 16 channels and
8 warps. float32 is multiplied without tensor cores and spills some, as does bfloat16 from 128 states on. Choices follow
from shapes and dtypes, none from timing, and no sum is atomic: a result is the same on every run.
"""

import contextlib
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import accumulation_dtype
from .triton_backward import group_gradient_kernel, head_gradient_kernel, state_gradient_kernel
from .triton_forward import forward_kernel
from .triton_steps import step_gradient_kernel, step_kernel
from .triton_tile import INTERPRETED

CHUNK = 64
"""Steps a chunk."""

ENOUGH_PROGRAMS = 512
"""With fewer, about four a multiprocessor, some would idle; backward then shares a group's heads out."""

MULTIPLIES_FLOAT64 = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 5)
_TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


_Arguments = dict[str, Tensor | int | None]


class Launch(NamedTuple):
    """A kernel with all that it is launched with."""

    kernel: Any
    programs: int
    arguments: _Arguments
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


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
        y in the dtype of ``x``, (batch, length, heads, headdim); the last state and the states between the chunks,
        (batch, heads, headdim, d_state) and (chunks − 1, batch, heads, headdim, d_state), in the accumulation dtype.
        Without ``save_states`` the latter has no elements.
    """
    launches = plan_forward(x, dt, A, B, C, D, dt_bias, dt_softplus, save_states, reverse)
    _run(x, launches)
    y, last_state, states = (launches[-1].arguments[name] for name in ("y", "last_state", "states"))
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
    reverse: bool = False,
) -> list[Launch]:
    """Allocates what :func:`forward` returns and says how its kernels are launched; tensors may be on meta."""
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    dtype = accumulation_dtype(x.dtype)
    state = (batch, heads, headdim, d_state)
    constants, num_warps, num_stages = _tiles(dtype, reverse, headdim, d_state, x, B, C)
    steps = _plan_steps(dt, A, dt_bias, dt_softplus, reverse, dtype)
    arguments: _Arguments = {
        "steps": steps.arguments["steps"],
        "x": x,
        "B": B,
        "C": C,
        "D": None if D is None else D.contiguous(),
        "y": x.new_empty(x.shape),
        "last_state": x.new_empty(state, dtype=dtype),
        "states": x.new_empty((num_chunks(length) if save_states else 0, *state), dtype=dtype),
        "length": length,
        "heads": heads,
        "heads_per_group": heads // groups,
        "headdim": headdim,
        "d_state": d_state,
        **_strides("x", x, ("batch", "step", "head", "channel")),
        **_strides("B", B, ("batch", "step", "group", "state")),
        **_strides("C", C, ("batch", "step", "group", "state")),
    }
    programs = batch * heads * triton.cdiv(headdim, constants["BLOCK_P"])
    constants["SAVE_STATES"] = save_states
    return [steps, Launch(forward_kernel, programs, arguments, constants, num_warps, num_stages)]


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
    launches = plan_backward(
        grad_y, grad_last_state, states, x, dt, A, B, C, D, dt_bias, dt_softplus, reverse
    )
    _run(x, launches)
    *_, by_group, by_head, steps = (launch.arguments for launch in launches)
    return (
        by_head["grad_x"],  # type: ignore[return-value]  # the arguments hold numbers too
        steps["grad_dt"],
        _sum(steps["grad_A"], (0, 2), A),
        _sum(by_group["grad_B"], (0,), B),
        _sum(by_group["grad_C"], (0,), C),
        x.new_empty(0) if D is None else _sum(by_head["grad_D"], (0, 2, 3), D),
        x.new_empty(0) if dt_bias is None else _sum(steps["grad_dt_bias"], (0, 2), dt_bias),
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
    reverse: bool = False,
) -> list[Launch]:
    """Allocates what :func:`backward` sums up and says how its kernels are launched, one after the other."""
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    dtype = accumulation_dtype(x.dtype)
    constants, num_warps, num_stages = _tiles(dtype, reverse, headdim, d_state, grad_y, x, B, C)
    blocks = triton.cdiv(headdim, constants["BLOCK_P"])
    chunks = num_chunks(length) + 1
    splits = _splits(batch * chunks * groups, heads // groups)
    steps = _plan_steps(dt, A, dt_bias, dt_softplus, reverse, dtype)

    state: _Arguments = {
        "steps": steps.arguments["steps"],
        "grad_y": grad_y,
        "grad_last_state": grad_last_state,
        "grad_states": states.new_empty(states.shape),
        "C": C,
        "length": length,
        "heads": heads,
        "heads_per_group": heads // groups,
        "headdim": headdim,
        "d_state": d_state,
        **_strides("grad", grad_y, ("batch", "step", "head", "channel")),
        **_strides("last", grad_last_state, ("batch", "head", "channel", "column")),
        **_strides("C", C, ("batch", "step", "group", "state")),
    }
    rows = (batch, heads, chunks, blocks)
    # float64: the terms of a chunk cancel in their sum, and there is one number a step and head only
    grad_sums: _Arguments = {
        "grad_sums": x.new_empty((*rows, CHUNK), dtype=torch.float64),
        "grad_over_chunk": x.new_empty(rows, dtype=torch.float64),
        "grad_driven": x.new_empty((*rows, CHUNK), dtype=dtype),
    }
    shared: _Arguments = {
        **state,
        "states": states.contiguous(),
        "x": x,
        "B": B,
        "batch_size": batch,
        **_strides("x", x, ("batch", "step", "head", "channel")),
        **_strides("B", B, ("batch", "step", "group", "state")),
    }
    own_head: _Arguments = {
        "D": None if D is None else D.contiguous(),
        "grad_x": x.new_empty(x.shape),
        "grad_D": None if D is None else x.new_empty(rows, dtype=dtype),
    }
    own_group: _Arguments = {
        # a whole sum is rounded by the kernel that has it, a partial one not
        "grad_B": B.new_empty((splits, *B.shape), dtype=B.dtype if splits == 1 else dtype),
        "grad_C": C.new_empty((splits, *C.shape), dtype=C.dtype if splits == 1 else dtype),
        "groups": groups,
        "splits": splits,
    }
    by_step = {
        **steps.arguments,
        **grad_sums,
        "grad_dt": dt.new_empty(dt.shape),
        "grad_A": x.new_empty(rows[:3], dtype=torch.float64),
        "grad_dt_bias": None if dt_bias is None else x.new_empty(rows[:3], dtype=torch.float64),
        "blocks": blocks,
    }
    walks = batch * heads * blocks
    sums = batch * chunks * groups * splits
    by_head, by_group = {**shared, **own_head, **grad_sums}, {**shared, **own_group}
    return [
        steps,
        Launch(state_gradient_kernel, walks if chunks > 1 else 0, state, constants, num_warps, num_stages),
        Launch(group_gradient_kernel, sums, by_group, constants, num_warps, num_stages=1),
        Launch(head_gradient_kernel, walks * chunks, by_head, constants, num_warps, num_stages=1),
        Launch(step_gradient_kernel, steps.programs, by_step, steps.constants, num_warps=1, num_stages=1),
    ]


def _plan_steps(
    dt: Tensor, A: Tensor, dt_bias: Tensor | None, dt_softplus: bool, reverse: bool, dtype: torch.dtype
) -> Launch:
    """Allocates the step sizes and cumulated decays and says how their kernel is launched."""
    batch, length, heads = dt.shape
    chunks = num_chunks(length) + 1
    arguments: _Arguments = {
        "dt": dt,
        "A": A.contiguous(),
        "dt_bias": None if dt_bias is None else dt_bias.contiguous(),
        "steps": dt.new_empty((batch, heads, chunks, 3, CHUNK), dtype=dtype),
        "length": length,
        "heads": heads,
        **_strides("dt", dt, ("batch", "step", "head")),
    }
    constants = {
        "DT_SOFTPLUS": dt_softplus,
        "REVERSE": reverse,
        "WIDE": _TRITON_DTYPES[dtype],
        "CHUNK": CHUNK,
    }
    return Launch(step_kernel, batch * heads * chunks, arguments, constants, num_warps=1, num_stages=1)


def _run(x: Tensor, launches: list[Launch]) -> None:
    """Launches kernels where ``x`` lies; one without programs has nothing to do."""
    if x.device.type == "cpu" and not INTERPRETED:
        raise RuntimeError(
            'the Triton kernels need a GPU, but x is on the CPU; choose the "cpu" implementation, or set '
            "TRITON_INTERPRET=1 before the first call to run them in Triton's interpreter"
        )
    if x.dtype == torch.float64 and not INTERPRETED:
        raise RuntimeError(
            'the Triton kernels take float64 in the interpreter alone; choose the "cpu" implementation, which runs on '
            "any device"
        )
    if x.dtype == torch.float64 and not MULTIPLIES_FLOAT64:
        raise RuntimeError(
            f"Triton {triton.__version__} multiplies no float64 matrices, not even in the interpreter; take Triton 3.5 or "
            'newer, or choose the "cpu" implementation, which runs on any device'
        )
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        for launch in launches:
            if launch.programs:
                launch.kernel[(launch.programs,)](
                    **launch.arguments,
                    **launch.constants,
                    num_warps=launch.num_warps,
                    num_stages=launch.num_stages,
                    enable_fp_fusion=True,  # Triton changes its default
                )


def _tiles(
    dtype: torch.dtype, reverse: bool, headdim: int, d_state: int, *operands: Tensor
) -> tuple[dict[str, Any], int, int]:
    """Chooses what the kernels are compiled for, their warps and their stages; the module says why."""
    dtypes = {operand.dtype for operand in operands}
    half = len(dtypes) == 1 and dtypes <= {torch.float16, torch.bfloat16}
    operand = dtypes.pop() if half else dtype
    fits = operand == torch.bfloat16 and d_state <= 64
    constants = {
        "REVERSE": reverse,
        "OPERAND": _TRITON_DTYPES[operand],
        "WIDE": _TRITON_DTYPES[dtype],
        "CHUNK": CHUNK,
        # the tensor cores multiply blocks of at least 16
        "BLOCK_P": min(32 if fits else 16, max(16, triton.next_power_of_2(headdim))),
        "BLOCK_N": max(16, triton.next_power_of_2(d_state)),
    }
    return constants, 4 if fits else 8, 2 if half else 1


def _sum(partial: Any, axes: tuple[int, ...], like: Tensor) -> Tensor:
    """Adds up the programs' partial sums, in the dtype of ``like``."""
    total: Tensor = (
        partial.sum(axes) if any(partial.shape[axis] != 1 for axis in axes) else partial.squeeze(axes)
    )
    return total.to(like.dtype)


def _strides(name: str, tensor: Tensor | None, axes: tuple[str, ...]) -> dict[str, int]:
    """Names the strides of a tensor, in elements; zero for an absent one."""
    strides = [0] * len(axes) if tensor is None else tensor.stride()
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}


def _splits(programs: int, heads: int) -> int:
    """Into how many equal parts a group's heads are shared out, so that there are enough programs."""
    return next(
        n for n in range(1, heads + 1) if heads % n == 0 and (programs * n >= ENOUGH_PROGRAMS or n == heads)
    )
