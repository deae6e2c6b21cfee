"""The specification of the state-space-duality scan: a plain loop over time, differentiated by autograd."""

import torch
import torch.nn.functional as F
from einops import einsum, repeat
from torch import Tensor

from ..precision import accumulation_dtype


def ssd_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs Mamba-2's scan, with one decay a head, one time step after the other.

    With δ = dt + dt_bias, or its softplus if ``dt_softplus``, and h_0 = 0::

        h_t = exp(δ_t A) h_{t-1} + δ_t x_t ⊗ B_t
        y_t = h_t C_t + D x_t

    Source: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
    Space Duality" (arXiv 2405.21060), the linear (recurrent) form of section 3.

    Arguments and results: :func:`.ssd_scan`. In reverse, h_{t-1} is h_{t+1}.

    Examples:
        >>> import torch
        >>> x = torch.ones(1, 3, 1, 1)
        >>> ssd_scan_reference(x, torch.ones(1, 3, 1), torch.zeros(1), x, x).flatten()
        tensor([1., 2., 3.])
    """
    dtype = accumulation_dtype(x.dtype)
    heads = x.shape[2]
    values, A = x.to(dtype), A.to(dtype)
    step = dt.to(dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    if dt_softplus:
        step = F.softplus(step)
    B, C = (repeat(m.to(dtype), "b l g n -> b l (g r) n", r=heads // m.shape[2]) for m in (B, C))

    h = values.new_zeros(x.shape[0], heads, x.shape[3], B.shape[3])
    steps = []
    length = x.shape[1]
    for t in reversed(range(length)) if reverse else range(length):
        driven = einsum(step[:, t], values[:, t], B[:, t], "b h, b h p, b h n -> b h p n")
        h = torch.exp(step[:, t] * A)[..., None, None] * h + driven
        steps.append(einsum(h, C[:, t], "b h p n, b h n -> b h p"))
    y = torch.stack(steps[::-1] if reverse else steps, dim=1)
    if D is not None:
        y = y + values * D.to(dtype)[:, None]
    y = y.to(x.dtype)
    return (y, h) if return_last_state else y
