"""The state-space-duality scan in Triton: what ``cpu`` computes, in two kernels forward and five backward.

Chunks of 64 steps make the products the least that fill a warp group's tensor cores; shorter ones would double the
states saved, longer ones the scores. Forward takes one program for 32 channels of a head and sequence, which walks the
chunks: 1536 programs at the model's pretraining size (64 sequences, length 257, 12 heads of 64 channels, 64 states;
each direction is a scan), so that the chunks need not be spread too. Twice the channels would share the scores but
spill. In bfloat16 forward moves 50 MB for x and y and 50 MB for the states there; backward, which reads these twice,
0.4 GB. Backward deals out chunks. The gradients of B and C are summed over heads in registers: one row for every head
would be another 0.2 GB.

bfloat16 fits the registers with 32 channels, 64 states and 4 warps; wider operands and more states take 16 channels and
8 warps. float32 is multiplied without tensor cores and spills some, as does bfloat16 from 128 states on. Choices follow
from shapes and dtypes, none from timing, and no sum is atomic: a result is the same on every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...runtime.implementation_request import ImplementationError
from ..precision import accumulation_dtype
from ..triton_launch import Arguments, Launch, check_device, run, strides
from .inputs import Gradients, Inputs, Outputs
from .triton_backward import group_gradient_kernel, head_gradient_kernel, state_gradient_kernel
from .triton_forward import forward_kernel
from .triton_steps import step_gradient_kernel, step_kernel
from .triton_tile import INTERPRETED

CHUNK = 64
"""Steps a chunk."""

ENOUGH_PROGRAMS = 512
"""With fewer, about four a multiprocessor, some would idle; backward then deals a group's heads out."""

ONE_WARP = {"num_warps": 1, "num_stages": 1}

MULTIPLIES_FLOAT64 = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 5)
_TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def num_chunks(length: int) -> int:
    """How many states forward saves: one at each boundary between chunks, as the first chunk starts from zero."""
    return (length - 1) // CHUNK


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan; arguments and results as for :func:`.cpu.forward`, but the states are those between the chunks."""
    launches = plan_forward(inputs, save_states)
    _run(inputs.x, launches)
    y, last_state, states = (launches[-1].arguments[name] for name in ("y", "last_state", "states"))
    return y, last_state, states  # type: ignore[return-value]  # the arguments hold numbers too


def plan_forward(inputs: Inputs, save_states: bool) -> list[Launch]:
    """Allocates what :func:`forward` returns and says how its kernels are launched; tensors may be on meta."""
    x, _, _, B, C, D, _, _, reverse = inputs
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    dtype = accumulation_dtype(x.dtype)
    state = (batch, heads, headdim, d_state)
    constants, options = _tiles(dtype, reverse, headdim, d_state, x, B, C)
    steps = _plan_steps(inputs, dtype)
    arguments: Arguments = {
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
        **strides("x", x, ("batch", "step", "head", "channel")),
        **strides("B", B, ("batch", "step", "group", "state")),
        **strides("C", C, ("batch", "step", "group", "state")),
    }
    programs = batch * heads * triton.cdiv(headdim, constants["BLOCK_P"])
    constants["SAVE_STATES"] = save_states
    return [steps, Launch(forward_kernel, programs, arguments, constants, options)]


def backward(grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu.backward`."""
    launches = plan_backward(grad_y, grad_last_state, states, inputs)
    _run(inputs.x, launches)
    x, _, A, B, C, D, dt_bias, _, _ = inputs
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
    grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs
) -> list[Launch]:
    """Allocates what :func:`backward` sums up and says how its kernels are launched, one after the other."""
    x, dt, _, B, C, D, dt_bias, _, reverse = inputs
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    dtype = accumulation_dtype(x.dtype)
    constants, options = _tiles(dtype, reverse, headdim, d_state, grad_y, x, B, C)
    blocks = triton.cdiv(headdim, constants["BLOCK_P"])
    chunks = num_chunks(length) + 1
    splits = _splits(batch * chunks * groups, heads // groups)
    steps = _plan_steps(inputs, dtype)

    state: Arguments = {
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
        **strides("grad", grad_y, ("batch", "step", "head", "channel")),
        **strides("last", grad_last_state, ("batch", "head", "channel", "column")),
        **strides("C", C, ("batch", "step", "group", "state")),
    }
    rows = (batch, heads, chunks, blocks)
    # float64: the terms of a chunk cancel in their sum, and there is one number a step and head only
    grad_sums: Arguments = {
        "grad_sums": x.new_empty((*rows, CHUNK), dtype=torch.float64),
        "grad_over_chunk": x.new_empty(rows, dtype=torch.float64),
        "grad_driven": x.new_empty((*rows, CHUNK), dtype=dtype),
    }
    shared: Arguments = {
        **state,
        "states": states.contiguous(),
        "x": x,
        "B": B,
        "batch_size": batch,
        **strides("x", x, ("batch", "step", "head", "channel")),
        **strides("B", B, ("batch", "step", "group", "state")),
    }
    own_head: Arguments = {
        "D": None if D is None else D.contiguous(),
        "grad_x": x.new_empty(x.shape),
        "grad_D": None if D is None else x.new_empty(rows, dtype=dtype),
    }
    own_group: Arguments = {
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
    one_stage = {**options, "num_stages": 1}
    by_head, by_group = {**shared, **own_head, **grad_sums}, {**shared, **own_group}
    return [
        steps,
        Launch(state_gradient_kernel, walks if chunks > 1 else 0, state, constants, options),
        Launch(group_gradient_kernel, sums, by_group, constants, one_stage),
        Launch(head_gradient_kernel, walks * chunks, by_head, constants, one_stage),
        Launch(step_gradient_kernel, steps.programs, by_step, steps.constants, ONE_WARP),
    ]


def _plan_steps(inputs: Inputs, dtype: torch.dtype) -> Launch:
    """Allocates the step sizes and cumulated decays and says how their kernel is launched."""
    dt, dt_bias = inputs.dt, inputs.dt_bias
    batch, length, heads = dt.shape
    chunks = num_chunks(length) + 1
    arguments: Arguments = {
        "dt": dt,
        "A": inputs.A.contiguous(),
        "dt_bias": None if dt_bias is None else dt_bias.contiguous(),
        "steps": dt.new_empty((batch, heads, chunks, 3, CHUNK), dtype=dtype),
        "length": length,
        "heads": heads,
        **strides("dt", dt, ("batch", "step", "head")),
    }
    constants = {
        "DT_SOFTPLUS": inputs.dt_softplus,
        "REVERSE": inputs.reverse,
        "WIDE": _TRITON_DTYPES[dtype],
        "CHUNK": CHUNK,
    }
    return Launch(step_kernel, batch * heads * chunks, arguments, constants, ONE_WARP)


def _run(x: Tensor, launches: list[Launch]) -> None:
    """Launches kernels, or raises ImplementationError for input that they cannot take."""
    check_device("x", x, bool(INTERPRETED))
    if x.dtype == torch.float64 and not INTERPRETED:
        raise ImplementationError(
            'the Triton kernels take float64 in the interpreter alone; choose the "cpu" implementation, which runs on '
            "any device"
        )
    if x.dtype == torch.float64 and not MULTIPLIES_FLOAT64:
        raise ImplementationError(
            f"Triton {triton.__version__} multiplies no float64 matrices, not even in the interpreter; take Triton 3.5 or "
            'newer, or choose the "cpu" implementation, which runs on any device'
        )
    run(x, *launches)


def _tiles(
    dtype: torch.dtype, reverse: bool, headdim: int, d_state: int, *operands: Tensor
) -> tuple[dict[str, Any], dict[str, int]]:
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
    return constants, {"num_warps": 4 if fits else 8, "num_stages": 2 if half else 1}


def _sum(partial: Any, axes: tuple[int, ...], like: Tensor) -> Tensor:
    """Adds up the programs' partial sums, in the dtype of ``like``."""
    total: Tensor = (
        partial.sum(axes) if any(partial.shape[axis] != 1 for axis in axes) else partial.squeeze(axes)
    )
    return total.to(like.dtype)


def _splits(programs: int, heads: int) -> int:
    """Into how many equal parts a group's heads are shared out, so that there are enough programs."""
    return next(
        n for n in range(1, heads + 1) if heads % n == 0 and (programs * n >= ENOUGH_PROGRAMS or n == heads)
    )
