"""Step sizes δ of the scans: the softplus of a biased projection, and its derivative."""

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTPLUS_THRESHOLD = 20.0
"""Above it softplus is taken as the identity, by torch and by mamba_ssm alike."""

# so many numbers and two temporaries stay in a core's second-level cache
_CACHED_ELEMENTS = 1 << 17


def biased_steps(raw: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Adds the bias, (d_inner,) or (heads,), to raw step sizes (..., d_inner) or (..., heads), in ``dtype``."""
    raw = raw.to(dtype)
    return raw if bias is None else raw + bias.to(dtype)


def step_sizes(raw: Tensor, bias: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    """Computes δ from raw step sizes; arguments as for :func:`biased_steps`, shape and dtype as its result."""
    biased = biased_steps(raw, bias, dtype)
    return F.softplus(biased) if softplus else biased


def write_step_sizes(out: Tensor, raw: Tensor, bias: Tensor | None, softplus: bool) -> None:
    """Writes what :func:`step_sizes` computes into a contiguous tensor, in its dtype."""
    if bias is not None and raw.dtype == bias.dtype == out.dtype:
        torch.add(raw, bias, out=out)
    else:
        out.copy_(raw)
        if bias is not None:
            out.add_(bias)
    if softplus:
        softplus_(out)


def softplus_(x: Tensor) -> None:
    """Replaces contiguous numbers by their softplus; torch's, scalar code on a CPU, takes five times as long.

    log(1 + eˣ) = max(x, 0) + log u + (w − (u − 1)) / u with w = exp(−|x|) and u = 1 + w as rounded: the quotient brings
    back what rounding took. Above the threshold all but max(x, 0) is below half a unit in float32's last place.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        torch.ops.aten.softplus.out(x, 1.0, SOFTPLUS_THRESHOLD, out=x)
        return
    for part in x.view(-1).split(_CACHED_ELEMENTS):
        w = part.abs().neg_().exp_()
        u = w + 1.0
        lost = w.sub_(u - 1.0).div_(u)
        part.clamp_min_(0.0).add_(u.log_().add_(lost))


def softplus_slope(biased: Tensor) -> Tensor:
    """Differentiates softplus; exact on both sides of the threshold."""
    return biased.sigmoid().masked_fill_(biased > SOFTPLUS_THRESHOLD, 1.0)
