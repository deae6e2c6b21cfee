"""Formulas of a fused kernel: the functions that LLVM has no instruction for, of one number or of a vector of them.

Products may be fused with the sum that takes them; nothing else is assumed, of NaN and infinity in particular.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Union

import numpy as np
from llvmlite import ir

SOFTPLUS_THRESHOLD = 20.0
"""Above it softplus is the identity, as in :mod:`..step_sizes`."""

_FUSE = ("contract",)
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)

Term = Union["Expression", float]


class Expression:
    """A value of LLVM that can be written in formulas; plain numbers are spread over all lanes."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @property
    def double(self) -> bool:
        """Whether the numbers are float64."""
        element = getattr(self.value.type, "element", self.value.type)
        return isinstance(element, ir.DoubleType)

    def constant(self, number: float, kind: Any = None) -> Any:
        """Spreads a number over the lanes, as a float of this kind or as an integer of the given type."""
        kind = kind or (ir.DoubleType() if self.double else ir.FloatType())
        if isinstance(self.value.type, ir.VectorType):
            lanes = self.value.type.count
            return ir.Constant(ir.VectorType(kind, lanes), [ir.Constant(kind, number)] * lanes)
        return ir.Constant(kind, number)

    def _of(self, other: Term) -> Any:
        return other.value if isinstance(other, Expression) else self.constant(float(other))

    def __add__(self, other: Term) -> "Expression":
        return Expression(self.builder, self.builder.fadd(self.value, self._of(other), flags=_FUSE))

    def __sub__(self, other: Term) -> "Expression":
        return Expression(self.builder, self.builder.fsub(self.value, self._of(other), flags=_FUSE))

    def __mul__(self, other: Term) -> "Expression":
        return Expression(self.builder, self.builder.fmul(self.value, self._of(other), flags=_FUSE))

    def __truediv__(self, other: Term) -> "Expression":
        return Expression(self.builder, self.builder.fdiv(self.value, self._of(other)))

    def over(self, number: Term) -> "Expression":
        """The number divided by this."""
        return Expression(self.builder, self.builder.fdiv(self._of(number), self.value))

    def where_above(self, bound: float, above: Term, otherwise: Term) -> "Expression":
        """Picks ``above`` where this exceeds the bound, the other elsewhere and where this is NaN."""
        chosen = self.builder.fcmp_ordered(">", self.value, self.constant(bound))
        return Expression(self.builder, self.builder.select(chosen, self._of(above), self._of(otherwise)))

    def at_most(self, bound: float) -> "Expression":
        """The smaller of this and the bound; NaN stays."""
        return self.where_above(bound, bound, self)

    def at_least(self, bound: float) -> "Expression":
        """The larger of this and the bound; NaN stays."""
        below = self.builder.fcmp_ordered("<", self.value, self.constant(bound))
        return Expression(self.builder, self.builder.select(below, self.constant(bound), self.value))

    def polynomial(self, coefficients: Sequence[float]) -> "Expression":
        """Evaluates a polynomial, its highest coefficient last."""
        total: Expression = Expression(self.builder, self.constant(coefficients[-1]))
        for coefficient in reversed(coefficients[:-1]):
            total = total * self + coefficient
        return total

    def bits(self) -> Any:
        """The numbers' bits, as integers of their size."""
        kind = _INT64 if self.double else _INT32
        vector = isinstance(self.value.type, ir.VectorType)
        return self.builder.bitcast(
            self.value, ir.VectorType(kind, self.value.type.count) if vector else kind
        )


def _interpolated(function: Callable[[Any], Any], degree: int, low: float, high: float) -> list[float]:
    """Returns the coefficients of the polynomial through a function at Chebyshev's points, the highest last."""
    polynomial = np.polynomial.Chebyshev.interpolate(function, degree, domain=[low, high])
    return [float(c) for c in polynomial.convert(kind=np.polynomial.Polynomial).coef]


def _slope_of_power(f: Any) -> Any:
    """(2^(f + 1) − 2) / f."""
    exponent = f * math.log(2)
    return np.where(f == 0, 2 * math.log(2), 2 * np.expm1(exponent) / np.where(f == 0, 1.0, f))


# 2^(f + 1) = 2 + f · slope on −½ … ½: relative error 3e-9 of degree 6, and less than a rounding of float64 of degree 12
_POWER = {
    False: _interpolated(_slope_of_power, 5, -0.5, 0.5),
    True: _interpolated(_slope_of_power, 11, -0.5, 0.5),
}
# log(1 + w) = 2 s Σ s^2k / (2k + 1) with s = w / (2 + w) ≤ ⅓
_LOGARITHM = {False: [2 / (2 * k + 1) for k in range(8)], True: [2 / (2 * k + 1) for k in range(17)]}
# cos(π r) and sin(π r) / r as polynomials in r², on r = −½ … ½. Of float32 the absolute error is 7e-9; of float64, whose
# coefficients must be exact to the last place, they are the series, and the first term left out is less than a rounding.
_COSINE = {
    False: _interpolated(lambda z: np.cos(math.pi * np.sqrt(z)), 5, 0.0, 0.25),
    True: [(-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k) for k in range(11)],
}
_SINE = {
    False: _interpolated(lambda z: math.pi * np.sinc(np.sqrt(z)), 4, 0.0, 0.25),
    True: [(-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(11)],
}
# Adding it leaves the nearest integer in the last bits, whatever the sign, the lowest of them its parity
_PARITY = {False: 1.5 * 2.0**23, True: 1.5 * 2.0**52}
_SIGN_PLACE = {False: (31, _INT32), True: (63, _INT64)}
# Adding it leaves the nearest integer in the last bits, 1.5 · 2^mantissa, and there with an exponent's bias. The bias is
# one too small and the mantissas doubled for it, so that the largest powers do not overflow early.
_ROUNDING = {False: 1.5 * 2.0**23 + 126.0, True: 1.5 * 2.0**52 + 1022.0}
_EXPONENT_PLACE = {False: (23, _INT32), True: (52, _INT64)}
_LOG2_E = math.log2(math.e)
# log 2 in two parts, of which the first has few bits, so that its products with small integers are exact
_LOG_2 = {False: (0.693359375, math.log(2) - 0.693359375), True: (0.6931471803691238, 1.9082149292705877e-10)}


def _scaled(doubled: Expression, shifted: Expression) -> Expression:
    """Multiplies half of a number by the power of two whose biased exponent is in the last bits of ``shifted``."""
    builder = doubled.builder
    place, kind = _EXPONENT_PLACE[doubled.double]
    power = builder.bitcast(builder.shl(shifted.bits(), shifted.constant(place, kind)), doubled.value.type)
    return doubled * Expression(builder, power)


def power_of_two(x: Expression) -> Expression:
    """2^x; 0 from about the smallest normal number on, infinity above the largest."""
    smallest = 1022.0 if x.double else 126.0
    x = x.at_most(smallest + 3.0).at_least(-smallest)
    shifted = x + _ROUNDING[x.double]
    f = x - (shifted - _ROUNDING[x.double])
    return _scaled(f.polynomial([2.0, *_POWER[x.double]]), shifted)


def exponential_of_negative(x: Expression) -> Expression:
    """e^x for x ≤ 0, to a unit in the last place; 0 from about the smallest normal number on."""
    smallest = 1022.0 if x.double else 126.0
    x = x.at_least(-smallest * math.log(2))
    shifted = x * _LOG2_E + _ROUNDING[x.double]
    n = shifted - _ROUNDING[x.double]
    high, low = _LOG_2[x.double]
    rest = (x - n * high) - n * low
    terms = [2.0 / math.factorial(k) for k in range(14 if x.double else 8)]
    return _scaled(rest.polynomial(terms), shifted)


def _decayed(x: Expression) -> Expression:
    """exp(−|x|)."""
    return exponential_of_negative(x.where_above(0.0, x * -1.0, x))


def softplus(x: Expression) -> Expression:
    """log(1 + e^x); x itself above the threshold."""
    w = _decayed(x)
    s = w / (w + 2.0)
    logarithm = s * (s * s).polynomial(_LOGARITHM[x.double])
    total = x.where_above(0.0, x, 0.0) + logarithm
    return x.where_above(SOFTPLUS_THRESHOLD, x, total)


def sigmoid(x: Expression) -> Expression:
    """1 / (1 + e^−x), without overflow."""
    w = _decayed(x)
    return x.where_above(0.0, 1.0, w) / (w + 1.0)


def silu(x: Expression) -> Expression:
    """The number times its sigmoid."""
    return x * sigmoid(x)


def silu_slope(x: Expression) -> Expression:
    """The derivative of :func:`silu`."""
    share = sigmoid(x)
    return share * (x * (share * -1.0 + 1.0) + 1.0)


def softplus_slope(x: Expression) -> Expression:
    """The derivative of :func:`softplus`."""
    return x.where_above(SOFTPLUS_THRESHOLD, 1.0, sigmoid(x))


def _half_turns(x: Expression) -> tuple[Expression, Any]:
    """Returns x less the nearest integer n, and the sign of (−1)^n as the highest bit.

    From 2^22 (2^51 for float64) on, neighbouring numbers differ by a quarter of a turn and more; the rest is kept within
    its bounds there, so that sine and cosine are. Infinity becomes NaN.
    """
    shifted = x + _PARITY[x.double]
    rest = (x - (shifted - _PARITY[x.double])).at_most(0.5).at_least(-0.5)
    place, kind = _SIGN_PLACE[x.double]
    return rest, x.builder.shl(shifted.bits(), shifted.constant(place, kind))


def _with_sign(x: Expression, sign: Any) -> Expression:
    """Changes the sign where the highest bit is set."""
    return Expression(x.builder, x.builder.bitcast(x.builder.xor(x.bits(), sign), x.value.type))


def cosine(x: Expression) -> Expression:
    """cos(π x), to about a rounding of 1."""
    rest, sign = _half_turns(x)
    return _with_sign((rest * rest).polynomial(_COSINE[x.double]), sign)


def sine(x: Expression) -> Expression:
    """sin(π x), to about a rounding of 1."""
    rest, sign = _half_turns(x)
    return _with_sign(rest * (rest * rest).polynomial(_SINE[x.double]), sign)
