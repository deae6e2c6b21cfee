"""EinFFT in forward mode: its maps are linear, and which numbers pass its kinks is the same for all directions."""

from typing import Any

from torch import Tensor

from ..forward_mode import Dual, rule
from ..spectral import MATRIX_LENGTH
from . import cpu
from .portable import einfft_portable


@rule(einfft_portable)
def _einfft(
    x: Any, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, threshold: float
) -> Any:
    if any(isinstance(weight, Dual) for weight in (weight_1, bias_1, weight_2, bias_2)):
        return NotImplemented
    if x.device.type != "cpu" or x.shape[1] > MATRIX_LENGTH:
        return NotImplemented
    value, saved, passed = cpu.forward(x.primal, weight_1, bias_1, weight_2, bias_2, threshold, True)
    return Dual(value, cpu.tangents(x.tangents, saved, passed, weight_1, weight_2))
