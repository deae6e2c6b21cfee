"""The specification of the complex scan: a plain loop over time in complex numbers, differentiated by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulation_dtype


def complex_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    w: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    reverse: bool = False,
) -> Tensor:
    """Runs the scan with complex poles one token after the other.

    With δ = softplus(delta + delta_bias), h_0 = 0, complex h, and B, C of real and imaginary parts::

        h_t = exp(δ_t (A + i w)) h_{t−1} + δ_t B_t u_t
        y_t = 2 Re(C_t · h_t) + D u_t

    which is the real scan of the states h and their conjugates. Source: Gu et al., "On the Parameterization and
    Initialization of Diagonal State Space Models" (S4D, arXiv 2206.11893), sections 3 and 4; Mamba's Euler step for B.

    Arguments and result: :func:`.complex_scan`. In reverse, h_{t−1} is h_{t+1}.

    Examples:
        >>> import torch
        >>> one, pole = torch.ones(1, 2, 1), torch.zeros(1, 1)
        >>> c = torch.tensor([1.0, 0.0]).expand(1, 2, 1, 2)
        >>> complex_scan_reference(one, one.expm1().log(), pole, pole + torch.pi, c, c, None, None)[0, :, 0].round().abs()
        tensor([2., 0.])
    """
    dtype = accumulation_dtype(u.dtype)
    x = u.to(dtype)
    step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
    step = F.softplus(step)
    poles = torch.complex(A.to(dtype), w.to(dtype))
    channels = x.shape[2] // B.shape[2]

    def per_channel(matrix: Tensor) -> Tensor:
        """Brings B or C into the form (batch, length, d_inner, pairs), complex."""
        real, imaginary = matrix.to(dtype).chunk(2, dim=-1)
        return torch.complex(real, imaginary).repeat_interleave(channels, dim=2)

    drives = (step * x).unsqueeze(-1) * per_channel(B)
    outputs = per_channel(C)
    h = drives.new_zeros(drives[:, 0].shape)
    rows = []
    length = x.shape[1]
    for t in reversed(range(length)) if reverse else range(length):
        h = torch.exp(step[:, t, :, None] * poles) * h + drives[:, t]
        rows.append(2.0 * (outputs[:, t] * h).sum(-1).real)
    y = torch.stack(rows[::-1] if reverse else rows, dim=1)
    if D is not None:
        y = y + x * D.to(dtype)
    return y.to(u.dtype)
