"""Mamba's step sizes: their projection, and the bias they start from."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def initial_step_bias(
    shape: torch.Size, dtype: torch.dtype, device: torch.device, lowest: float = 1e-3, highest: float = 0.1
) -> Tensor:
    """Draws δ log-uniformly from [lowest, highest] and returns its inverse softplus.

    Source: Gu and Dao (arXiv 2312.00752), section 3.6; δ is clamped to at least 1e-4 as in the authors' models.

    Args:
        shape: Shape of the bias.
        dtype: Dtype of the bias.
        device: Device of the bias.
        lowest: Smallest step size.
        highest: Largest step size.
    """
    uniform = torch.rand(shape, dtype=torch.float32, device=device)
    step = torch.exp(uniform * (math.log(highest) - math.log(lowest)) + math.log(lowest)).clamp(min=1e-4)
    return (step + torch.log(-torch.expm1(-step))).to(dtype)


class StepProjection(nn.Linear):
    """A linear layer whose bias acts later, inside the scan, once; it has one all the same, under its usual name.

    A layer that is called, rather than one whose weight is read, can be hooked, and adapted by LoRA.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies (..., in_features) by the weight alone; returns (..., out_features)."""
        return F.linear(x, self.weight)
