"""The specification of the selective scan: a plain loop over time, differentiated by autograd."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ..precision import accumulation_dtype


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the selective scan one time step after the other.

    With δ = delta + delta_bias, or its softplus if ``delta_softplus``, and h_0 = 0::

        h_t = exp(δ_t A) h_{t-1} + δ_t B_t u_t
        y_t = C_t · h_t + D u_t,   then y_t · silu(z_t) if z is given

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752),
    equations 2 and 4 with zero-order hold for A and the Euler step for B.

    Arguments and results: :func:`.selective_scan`. In reverse, h_{t-1} is h_{t+1}.

    Examples:
        >>> import torch
        >>> u = torch.ones(1, 1, 3)
        >>> ones = torch.ones(1, 1, 3)
        >>> selective_scan_reference(u, ones, torch.zeros(1, 1), ones, ones)
        tensor([[[1., 2., 3.]]])
    """
    dtype = accumulation_dtype(u.dtype)
    d_inner, length = u.shape[1:]
    x, A = u.to(dtype), A.to(dtype)
    delta = delta.to(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    def per_channel(matrix: Tensor) -> Tensor:
        """Brings B or C into the form (batch or 1, d_inner, d_state, length or 1)."""
        matrix = matrix.to(dtype)
        if matrix.ndim == 2:
            return rearrange(matrix, "d n -> 1 d n 1")
        if matrix.ndim == 3:
            return rearrange(matrix, "b n l -> b 1 n l")
        return repeat(matrix, "b g n l -> b (g d) n l", d=d_inner // matrix.shape[1])

    inputs = (delta * x)[:, :, None] * per_channel(B)
    outputs = per_channel(C).expand(-1, -1, -1, length)
    h = x.new_zeros(x.shape[0], *A.shape)
    steps = []
    for t in reversed(range(length)) if reverse else range(length):
        h = torch.exp(delta[:, :, t, None] * A) * h + inputs[..., t]
        steps.append((h * outputs[..., t]).sum(-1))
    y = torch.stack(steps[::-1] if reverse else steps, dim=-1)
    if D is not None:
        y = y + x * D.to(dtype)[:, None]
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, h) if return_last_state else y
