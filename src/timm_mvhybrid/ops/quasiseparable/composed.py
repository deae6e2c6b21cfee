"""Hydra's quasiseparable matrix from two scans of any implementation, forward and backward, for the operator."""

from types import ModuleType

import torch
from torch import Tensor

from ..ssd.inputs import Inputs as ScanInputs
from .inputs import Gradients, Inputs
from .portable import earlier, later


def forward(scan: ModuleType, inputs: Inputs, save_states: bool) -> tuple[Tensor, Tensor]:
    """Multiplies tokens by the matrix with the scan of an implementation.

    Returns:
        y, and the states of both directions, (2, chunks, batch, heads, headdim, d_state).
    """
    (y, _, states), (y_b, _, states_b) = (
        scan.forward(_of_direction(inputs, direction), save_states) for direction in range(2)
    )
    y = torch.addcmul(later(y) + earlier(y_b), inputs.x, inputs.diagonal.to(y.dtype).unsqueeze(-1))
    return y, torch.stack([states, states_b])


def backward(scan: ModuleType, grad_y: Tensor, states: Tensor, inputs: Inputs) -> Gradients:
    """Differentiates :func:`forward`; arguments and results as for :func:`.cpu_backward.backward`."""
    x, diagonal = inputs.x, inputs.diagonal
    grads = [
        scan.backward(grad_scan, None, states[direction], _of_direction(inputs, direction))
        # the scans' outputs were shifted, so the gradient is shifted back
        for direction, grad_scan in enumerate((earlier(grad_y), later(grad_y)))
    ]
    (grad_x, grad_dt, grad_A, grad_B, grad_C, _, grad_bias), of_backward = grads
    grad_x_b, grad_dt_b, grad_A_b, grad_B_b, grad_C_b, _, grad_bias_b = of_backward
    return (
        torch.addcmul(grad_x + grad_x_b, grad_y, diagonal.to(x.dtype).unsqueeze(-1)),
        torch.stack([grad_dt, grad_dt_b], dim=2),
        grad_A + grad_A_b,
        torch.stack([grad_B, grad_B_b], dim=2),
        torch.stack([grad_C, grad_C_b], dim=2),
        grad_bias + grad_bias_b,
        (grad_y * x).sum(-1).to(diagonal.dtype),
    )


def _of_direction(inputs: Inputs, direction: int) -> ScanInputs:
    """Takes the scan of one direction out of both."""
    x, dt, A, B, C, dt_bias, _ = inputs
    dt, B, C = (v[:, :, direction] for v in (dt, B, C))
    return ScanInputs(x, dt, A, B, C, None, dt_bias, dt_softplus=True, reverse=direction == 1)
