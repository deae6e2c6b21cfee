"""The state-space-duality scan on Mamba-2's Triton kernels, ``mamba_chunk_scan_combined`` of the installed package.

The package offers the scan as one differentiable function. Backward runs that function again and differentiates it,
so that nothing of its insides is relied on; the price is a second forward pass.
"""

from collections.abc import Sequence

import torch
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from torch import Tensor

KERNEL_CHUNK = 64
"""Steps a chunk; a power of two of at least 16."""


def num_chunks(length: int) -> int:
    """None of the states that backward would start from is saved, whatever the length."""
    return 0


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
    """Runs the scan; arguments and results as for the plain implementation, :func:`.cpu.forward`."""
    y, last_state = _scan(_kernel_inputs(x, dt, A, B, C, D, dt_bias), dt_softplus)
    last_state = last_state.to(torch.float32).contiguous()
    return y.contiguous(), last_state, last_state.new_empty((0, *last_state.shape))


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
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu.backward`."""
    inputs = (x, dt, A, B, C, D, dt_bias)
    leaves = [None if v is None else v.detach().requires_grad_() for v in _kernel_inputs(*inputs)]
    # the package's scan is a single autograd function, which records itself within an operator too
    with torch.enable_grad():
        y, last_state = _scan(leaves, dt_softplus)
    outputs, cotangents = [y], [grad_y.to(y.dtype).contiguous()]
    if grad_last_state is not None:
        outputs, cotangents = [y, last_state], [*cotangents, grad_last_state.to(last_state.dtype)]
    present = [v for v in leaves if v is not None]
    grads = iter(torch.autograd.grad(outputs, present, cotangents))
    return tuple(x.new_empty(0) if v is None else next(grads).to(v.dtype) for v in inputs)  # type: ignore[return-value]


def _kernel_inputs(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Brings B and C to the dtype of x, and the parameters to float32, as the kernels expect them."""
    D, dt_bias = (None if v is None else v.float() for v in (D, dt_bias))
    return x, dt, A.float(), B.to(x.dtype), C.to(x.dtype), D, dt_bias


def _scan(inputs: Sequence[Tensor | None], dt_softplus: bool) -> tuple[Tensor, Tensor]:
    """Calls the package."""
    x, dt, A, B, C, D, dt_bias = inputs
    y, last_state = mamba_chunk_scan_combined(
        x, dt, A, B, C, KERNEL_CHUNK, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, return_final_states=True
    )
    return y, last_state
