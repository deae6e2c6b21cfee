"""Closed forms of a linear scan with constant coefficients: poles → transfer function, decay → half-power frequency."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import ParameterError

Discretisation = Literal["euler", "zoh", "continuous"]
"""How δ turns the poles into decays and drives; ``continuous`` has no δ."""

SMALLEST_HALF_POWER_DECAY = 3.0 - 2.0 * np.sqrt(2.0)
"""A decay below it never falls to half its power, not even at π rad a token."""


def transfer_function(
    eigenvalues: ArrayLike,
    delta: float | None,
    B: ArrayLike,
    C: ArrayLike,
    D: float | None,
    omega: ArrayLike,
    discretisation: Discretisation = "euler",
) -> NDArray[np.complex128]:
    """Evaluates what a scan with constant δ, B and C makes of exp(i ω t), after its transient.

    With a_n = exp(δ A_n)::

        euler        H(ω) = D + Σ_n C_n B_n δ / (1 − a_n exp(−i ω)), the scans of this package
        zoh          H(ω) = D + Σ_n C_n B_n (a_n − 1) / A_n / (1 − a_n exp(−i ω))
        continuous   H(ω) = D + Σ_n C_n B_n / (i ω − A_n)

    so that one pole A = −λ + i w has the modulus 1/√(λ² + (ω − w)²) in continuous time. The sum runs over the poles that
    are given: for a scan with complex pairs, whose y is 2 Re(C h), give each pole and its conjugate, with conjugate C.

    Differences of nearly equal numbers are taken by expm1, so that poles with 1 − a of 1e-9 keep their digits.

    Source: the z-transform of h_t = a h_{t−1} + b u_t; Mamba (arXiv 2312.00752), equation 4, for the discretisations.

    Args:
        eigenvalues: Poles A, real or complex, (states,).
        delta: Step size, above 0; None for ``continuous``, which does not read it.
        B: Input matrix, (states,), or one number for all.
        C: Output matrix, likewise.
        D: Skip; None for none.
        omega: Frequencies, of any shape: rad a token, or rad a unit of time for ``continuous``.
        discretisation: ``euler``, ``zoh`` or ``continuous``.

    Returns:
        H, in the shape of ``omega``; infinite where ω meets a pole without decay.

    Raises:
        ParameterError: A shape does not fit, or δ is missing or not above 0.

    Examples:
        >>> abs(transfer_function([-3.0], None, 1.0, 1.0, None, 4.0, "continuous")).item()
        0.2
    """
    A = np.asarray(eigenvalues, dtype=np.complex128)
    w = np.asarray(omega, dtype=np.float64)
    if A.ndim != 1 or len(A) == 0:
        raise ParameterError(f"`eigenvalues` has shape {A.shape}; it must be (states,) with at least one")
    if discretisation not in get_args(Discretisation):
        raise ParameterError(
            f"`discretisation` is {discretisation!r}; allowed are {', '.join(get_args(Discretisation))}"
        )
    weights = _per_state("B", B, A) * _per_state("C", C, A)
    frequency = 1j * w[..., None]
    if discretisation == "continuous":
        parts = _divide(weights, frequency - A)
    else:
        if delta is None or not delta > 0 or not np.isfinite(delta):
            raise ParameterError(f"`delta` is {delta}; '{discretisation}' needs a number above 0")
        drive: Any = delta
        if discretisation == "zoh":
            # (a − 1) / A, whose limit at A = 0 is δ
            zero = A == 0
            drive = np.where(zero, delta, np.expm1(delta * A) / np.where(zero, 1.0, A))
        parts = _divide(weights * drive, -np.expm1(delta * A - frequency))
    return np.asarray(parts.sum(-1) + (0.0 if D is None else D), dtype=np.complex128)


def half_power_frequency(decay: ArrayLike) -> NDArray[np.float64]:
    """Finds where one real pole has lost half of the power that it has at ω = 0.

    |1 − a exp(−i ω)|² = 2 (1 − a)², so cos ω = 1 − (1 − a)²/(2 a), computed as sin(ω/2) = (1 − a)/(2 √a), which keeps
    its digits as a approaches 1. Where a < 3 − 2 √2 the gain never falls so far: fast states filter next to nothing.

    Args:
        decay: a, of any shape; a stable state has 0 < a < 1.

    Returns:
        rad a token, up to π, in the shape of ``decay``; NaN where half power is never reached, and for an a that is not
        in (0, 1).
    """
    a = np.asarray(decay, dtype=np.float64)
    valid = (a >= SMALLEST_HALF_POWER_DECAY) & (a < 1)
    safe = np.where(valid, a, 0.5)
    half = (1.0 - safe) / (2.0 * np.sqrt(safe))
    return np.asarray(np.where(valid, 2.0 * np.arcsin(np.minimum(half, 1.0)), np.nan))


def _per_state(name: str, values: ArrayLike, A: NDArray[np.complex128]) -> NDArray[np.complex128]:
    found = np.asarray(values, dtype=np.complex128)
    if found.shape not in ((), A.shape):
        raise ParameterError(
            f"`{name}` has shape {found.shape}; it must be (states,) = {A.shape}, or one number"
        )
    return found


def _divide(numerator: NDArray[np.complex128], denominator: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Divides; what stands on a pole is infinite, and 0 / 0 is 0, because a state without weight takes no part."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = numerator / denominator
    on_pole = denominator == 0
    parts = np.where(on_pole & (numerator != 0), np.inf + 0j, parts)
    return np.asarray(np.where(on_pole & (numerator == 0), 0.0, parts))
