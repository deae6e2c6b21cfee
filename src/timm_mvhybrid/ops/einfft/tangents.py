"""EinFFT in forward mode: its maps are linear, and which numbers pass its kinks is the same for all directions."""

from typing import Any

import torch
from torch import Tensor

from ..forward_mode import Dual, rule
from ..spectral import MATRIX_LENGTH
from . import cpu
from .portable import einfft_portable


@rule(einfft_portable)
def _einfft(
    x: Any, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, threshold: float
) -> Any:
    weights = (weight_1, bias_1, weight_2, bias_2)
    if any(isinstance(weight, Dual) for weight in weights):
        return NotImplemented
    if x.device.type != "cpu" or x.shape[1] > MATRIX_LENGTH:
        return NotImplemented
    weights = tuple(weight.to(x.dtype) for weight in weights)
    value, saved, passed = cpu.forward(x.primal, *weights, threshold, True)
    return Dual(value, cpu.tangents(x.tangents, saved, passed, weights[0], weights[2]))
