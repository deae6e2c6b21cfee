"""Which eigenvalues a selective scan has: real ones, or complex pairs of as many real numbers."""

import math

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn

from ..ops.complex_scan import complex_scan
from ..ops.precision import at_least_float32
from ..ops.selective_scan import selective_scan_tokens
from ..runtime.errors import ParameterError
from .scan_tokens import ScanTokens

EIGENVALUES = ("real", "complex")


def num_poles(eigenvalues: str, d_state: int) -> int:
    """Number of decay rates a channel: ``d_state`` real ones, or half as many pairs.

    A pair has two numbers in A (decay and frequency), in B and in C (real and imaginary part), so that a mixer has as many
    parameters either way.

    Raises:
        ParameterError: ``eigenvalues`` is neither, or pairs do not fill ``d_state``.
    """
    if eigenvalues not in EIGENVALUES:
        raise ParameterError(f"`eigenvalues` is {eigenvalues!r}; allowed are 'real' and 'complex'")
    if eigenvalues == "complex" and d_state % 2:
        raise ParameterError(f"`d_state` is {d_state}; complex eigenvalues come in pairs, so it must be even")
    return d_state // 2 if eigenvalues == "complex" else d_state


@torch.no_grad()
def initialize_eigenvalues(A_log: Tensor, A_imag: Tensor | None) -> None:
    """Fills the decay rates, (d_inner, poles), and the frequencies of complex poles, in place.

    Real: −1, −2, … as in Mamba (S4D-Real). Complex: −1/2 ± i π n with n = 0, 1, … (S4D-Lin). Source: Gu et al. (arXiv
    2206.11893), section 4.
    """
    numbers = torch.arange(A_log.shape[1], device=A_log.device, dtype=torch.float32)
    if A_imag is None:
        A_log.copy_((numbers + 1).log().expand_as(A_log))
    else:
        A_log.fill_(math.log(0.5))
        A_imag.copy_((math.pi * numbers).expand_as(A_imag))


@register_notrace_function
def scan(
    tokens: ScanTokens,
    A_log: Tensor,
    A_imag: Tensor | None,
    D: Tensor,
    step_bias: Tensor | None,
    reverse: bool = False,
) -> Tensor:
    """Runs the scan that the eigenvalues ask for, A = −exp(A_log) or −exp(A_log) ± i A_imag; a leaf for FX, and scriptable."""
    rates = -torch.exp(at_least_float32(A_log))
    if A_imag is None:
        return selective_scan_tokens(
            tokens.x, tokens.dt, rates, tokens.B, tokens.C, D, None, step_bias, reverse
        )
    return complex_scan(
        tokens.x,
        tokens.dt,
        rates,
        at_least_float32(A_imag),
        tokens.B,
        tokens.C,
        D,
        step_bias,
        reverse,
    )


def frequencies(like: Tensor, eigenvalues: str) -> nn.Parameter | None:
    """Makes the frequencies of complex poles, like their decay rates; None for real ones."""
    return nn.Parameter(torch.empty_like(like)) if eigenvalues == "complex" else None
