"""The selective scan on mamba-ssm's CUDA kernels, ``selective_scan_cuda`` of the installed package.

Its kernels take channel-major tensors, unit stride along time, one dtype for u, δ, B and C, and float32 for A, D and
the bias; this adapter brings ours into that form. They keep nothing from the forward pass for sequences of up to 2,048
steps, so none of our states is saved. Source of the interface: mamba_ssm 2.3, ``selective_scan_interface.py``.
"""

import selective_scan_cuda
import torch
from torch import Tensor

from ...runtime.errors import ParameterError
from . import cpu
from .inputs import Gradients, Inputs, Outputs

MAX_STATE = 256
"""Largest d_state of the kernels."""

KERNEL_CHUNK = 2048
"""Steps that the kernels scan in one piece; longer sequences need the states between the pieces."""


def num_chunks(length: int) -> int:
    """None of the states that backward would start from is saved, whatever the length."""
    return 0


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Runs the scan; arguments and results as for the plain implementation, :func:`.cpu.forward`."""
    _check(inputs.A)
    y, pieces, *gated = selective_scan_cuda.fwd(*_kernel_arguments(inputs), inputs.delta_softplus)
    y = gated[0] if gated else y
    # the kernels keep pairs (product of decays, state) at the end of every piece, (batch, d_inner, pieces, 2 d_state)
    last_state = pieces[:, :, -1, 1::2].unflatten(1, (inputs.B.shape[2], -1)).transpose(2, 3)
    states = last_state.new_empty((0, *last_state.shape))
    return _in_time(y, inputs.reverse).transpose(1, 2).contiguous(), last_state.contiguous(), states


def backward(grad_y: Tensor, grad_last_state: Tensor | None, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu.backward`."""
    if grad_last_state is not None:
        # the kernels ignore this gradient, so plain torch takes the whole pass
        return cpu.backward(grad_y, grad_last_state, cpu.forward(inputs, save_states=True)[2], inputs)
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse = inputs
    arguments = _kernel_arguments(inputs)
    pieces, y = None, None
    if z is not None or u.shape[1] > KERNEL_CHUNK:
        y, pieces, *_ = selective_scan_cuda.fwd(*arguments, delta_softplus)
    grad = _in_time(grad_y.to(u.dtype).transpose(1, 2), reverse).contiguous()
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, *gates = selective_scan_cuda.bwd(
        *arguments, grad, pieces, y if z is not None else None, None, delta_softplus, False
    )
    return (
        _in_time(grad_u, reverse).transpose(1, 2).to(u.dtype),
        _in_time(grad_delta, reverse).transpose(1, 2).to(delta.dtype),
        grad_A.to(A.dtype),
        _in_time(grad_B, reverse).permute(0, 3, 1, 2).to(B.dtype),
        _in_time(grad_C, reverse).permute(0, 3, 1, 2).to(C.dtype),
        u.new_empty(0) if D is None else grad_D.to(D.dtype),
        u.new_empty(0) if z is None else _in_time(gates[0], reverse).transpose(1, 2).to(z.dtype),
        u.new_empty(0) if delta_bias is None else grad_bias.to(delta_bias.dtype),
    )


def _kernel_arguments(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Brings token-major tensors into the kernels' layout and dtypes."""
    u, delta, A, B, C, D, z, delta_bias, _, reverse = inputs

    def channel_major(values: Tensor) -> Tensor:
        return _in_time(values.to(u.dtype).transpose(1, 2), reverse).contiguous()

    def state_major(matrix: Tensor) -> Tensor:
        return _in_time(matrix.to(u.dtype).permute(0, 2, 3, 1), reverse).contiguous()

    def weight(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.to(torch.float32).contiguous()

    return (
        channel_major(u),
        channel_major(delta),
        weight(A),
        state_major(B),
        state_major(C),
        weight(D),
        None if z is None else channel_major(z),
        weight(delta_bias),
    )


def _in_time(values: Tensor, reverse: bool) -> Tensor:
    """Reverses the last axis, time, for a reversed scan."""
    return values.flip(-1) if reverse else values


def _check(A: Tensor) -> None:
    """Raises ParameterError for a state that the kernels cannot hold."""
    if A.shape[1] > MAX_STATE:
        raise ParameterError(
            f"`d_state` is {A.shape[1]}; mamba-ssm's kernels take at most {MAX_STATE}; "
            'use timm_mvhybrid.ops.use_implementation("triton") or "cpu"'
        )
