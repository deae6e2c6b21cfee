"""The state-space-duality scan on Mamba-2's Triton kernels, ``mamba_chunk_scan_combined`` of the installed package.

The package offers the scan as one differentiable function. Backward runs that function again and differentiates it,
so that nothing of its insides is relied on; the price is a second forward pass.
"""

from collections.abc import Sequence

import torch
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from torch import Tensor

from .inputs import Gradients, Inputs, Outputs

KERNEL_CHUNK = 64
"""Steps a chunk; a power of two of at least 16."""

_TIMED = (0, 1, 3, 4)
"""Places of x, dt, B and C among the inputs, those with an axis of time."""


def num_chunks(length: int) -> int:
    """None of the states that backward would start from is saved, whatever the length."""
    return 0


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan; arguments and results as for the plain implementation, :func:`.cpu.forward`."""
    y, last_state = _scan(_kernel_inputs(inputs), inputs.dt_softplus)
    last_state = last_state.to(torch.float32).contiguous()
    return _in_time(y, inputs.reverse).contiguous(), last_state, last_state.new_empty((0, *last_state.shape))


def backward(grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu.backward`."""
    reverse = inputs.reverse
    leaves = [None if v is None else v.detach().requires_grad_() for v in _kernel_inputs(inputs)]
    # the package's scan is a single autograd function, which records itself within an operator too
    with torch.enable_grad():
        y, last_state = _scan(leaves, inputs.dt_softplus)
    outputs, cotangents = [y], [_in_time(grad_y.to(y.dtype), reverse).contiguous()]
    if grad_last_state is not None:
        outputs, cotangents = [y, last_state], [*cotangents, grad_last_state.to(last_state.dtype)]
    present = [v for v in leaves if v is not None]
    found = iter(torch.autograd.grad(outputs, present, cotangents))
    grads = [inputs.x.new_empty(0) if v is None else next(found).to(v.dtype) for v in inputs[:7]]
    for index in _TIMED:
        grads[index] = _in_time(grads[index], reverse)
    return tuple(grads)  # type: ignore[return-value]


def _kernel_inputs(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Brings B and C to the dtype of x, parameters to float32, and everything into scan order."""
    x, dt, A, B, C, D, dt_bias, _, reverse = inputs
    D, dt_bias = (None if v is None else v.float() for v in (D, dt_bias))
    x, dt, B, C = (_in_time(v, reverse) for v in (x, dt, B.to(x.dtype), C.to(x.dtype)))
    return x, dt, A.float(), B, C, D, dt_bias


def _in_time(values: Tensor, reverse: bool) -> Tensor:
    """Reverses the second axis, time, for a reversed scan."""
    return values.flip(1) if reverse else values


def _scan(inputs: Sequence[Tensor | None], dt_softplus: bool) -> tuple[Tensor, Tensor]:
    """Calls the package."""
    x, dt, A, B, C, D, dt_bias = inputs
    y, last_state = mamba_chunk_scan_combined(
        x, dt, A, B, C, KERNEL_CHUNK, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, return_final_states=True
    )
    return y, last_state
