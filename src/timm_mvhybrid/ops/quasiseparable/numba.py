"""Hydra's quasiseparable matrix in numba's kernels: both scans, shift and sum in one pass, forward and backward."""

from torch import Tensor

from ..precision import accumulation_dtype
from ..ssd.numba import add_gradients, add_scans, step_sizes
from ..step_sizes import biased_steps, softplus_slope
from .inputs import Gradients, Inputs


def forward(inputs: Inputs, save_states: bool) -> tuple[Tensor, Tensor]:
    """Multiplies tokens by the matrix; results as for :func:`.composed.forward`."""
    x, dt, A, B, C, dt_bias, diagonal = inputs
    dtype = accumulation_dtype(x.dtype)
    y = (x.to(dtype) * diagonal.to(dtype).unsqueeze(-1)).contiguous()
    step = step_sizes(dt, dt_bias, True, dtype)
    states, _ = add_scans(y, x, step, A, B, C, reverse=False, shift=1, save_states=save_states)
    return y.to(x.dtype), states


def backward(grad_y: Tensor, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu_backward.backward`."""
    x, dt, A, B, C, dt_bias, diagonal = inputs
    dtype = accumulation_dtype(x.dtype)
    wide = grad_y.to(dtype)
    grad_x = (wide * diagonal.to(dtype).unsqueeze(-1)).contiguous()
    step = step_sizes(dt, dt_bias, True, dtype)
    grad_step, grad_A, grad_B, grad_C = add_gradients(
        grad_x, grad_y, states, (x, step, A, B, C), grad_last_state=None, reverse=False, shift=1
    )
    grad_dt = grad_step * softplus_slope(biased_steps(dt, dt_bias, dtype))
    return (
        grad_x.to(x.dtype),
        grad_dt.to(dt.dtype),
        grad_A.to(A.dtype),
        grad_B.to(B.dtype),
        grad_C.to(C.dtype),
        grad_dt.sum((0, 1, 2)).to(dt_bias.dtype),
        (wide * x).sum(-1).to(diagonal.dtype),
    )
