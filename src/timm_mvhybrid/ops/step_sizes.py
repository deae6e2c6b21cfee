"""Step sizes δ of the scans: the softplus of a biased projection, and its derivative."""

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTPLUS_THRESHOLD = 20.0
"""Above it softplus is taken as the identity, by torch and by mamba_ssm alike."""


def biased_steps(raw: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Adds the bias, (d_inner,) or (heads,), to raw step sizes (..., d_inner) or (..., heads), in ``dtype``."""
    raw = raw.to(dtype)
    return raw if bias is None else raw + bias.to(dtype)


def step_sizes(raw: Tensor, bias: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    """Computes δ from raw step sizes; arguments as for :func:`biased_steps`, shape and dtype as its result."""
    biased = biased_steps(raw, bias, dtype)
    return F.softplus(biased) if softplus else biased


def softplus_slope(biased: Tensor) -> Tensor:
    """Differentiates softplus; exact on both sides of the threshold."""
    return biased.sigmoid().masked_fill_(biased > SOFTPLUS_THRESHOLD, 1.0)
