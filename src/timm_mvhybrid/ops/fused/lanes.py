"""Vectors of a fused kernel: ``LANES`` neighbouring numbers in registers, and the arithmetic on them.

numba has no vectors of its own and leaves it to LLVM to find them in loops, where it has to prove first that no two
buffers overlap. Here each operation on ``LANES`` numbers is written out, on memory that is given by its address; LLVM
splits it into as many registers as the processor has it fit. Products may be fused with the sum that takes them, and
nothing else is assumed, of NaN and infinity in particular.

Imported where numba is installed, at the first use of a kernel.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Union

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic, overload

LANES = 16
"""Numbers in a vector: the channels that a kernel takes at a time."""

SOFTPLUS_THRESHOLD = 20.0
"""Above it softplus is the identity, as in :mod:`..step_sizes`."""

_FUSE = ("contract",)
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_SCALARS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}

Term = Union["Expression", float]
Codegen = Callable[[Any, Any, Any, Sequence[Any]], Any]


class Vector(types.Type):
    """The type of ``LANES`` numbers.

    Attributes:
        scalar: Type of each, float32 or float64.
    """

    def __init__(self, scalar: types.Float) -> None:
        super().__init__(name=f"Vector({scalar})")
        self.scalar = scalar


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(_SCALARS[kind.scalar], LANES))


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
            return ir.Constant(ir.VectorType(kind, LANES), [ir.Constant(kind, number)] * LANES)
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
        return self.builder.bitcast(self.value, ir.VectorType(kind, LANES) if vector else kind)


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


def _softplus(x: Expression) -> Expression:
    w = _decayed(x)
    s = w / (w + 2.0)
    logarithm = s * (s * s).polynomial(_LOGARITHM[x.double])
    total = x.where_above(0.0, x, 0.0) + logarithm
    return x.where_above(SOFTPLUS_THRESHOLD, x, total)


def _sigmoid(x: Expression) -> Expression:
    w = _decayed(x)
    return x.where_above(0.0, 1.0, w) / (w + 1.0)


def _silu(x: Expression) -> Expression:
    return x * _sigmoid(x)


def _silu_slope(x: Expression) -> Expression:
    share = _sigmoid(x)
    return share * (x * (share * -1.0 + 1.0) + 1.0)


def _softplus_slope(x: Expression) -> Expression:
    return x.where_above(SOFTPLUS_THRESHOLD, 1.0, _sigmoid(x))


def _unary(formula: Callable[[Expression], Expression]) -> Callable[..., Any]:
    @intrinsic
    def function(context: Any, x: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
            return formula(Expression(builder, args[0])).value

        return x(x), generate

    return function


exp2 = _unary(power_of_two)
softplus = _unary(_softplus)
softplus_slope = _unary(_softplus_slope)
silu = _unary(_silu)
silu_slope = _unary(_silu_slope)


def _binary(symbol: Callable[[Any, Any], Any]) -> None:
    @intrinsic
    def function(context: Any, a: Any, b: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
            return symbol(Expression(builder, args[0]), Expression(builder, args[1])).value

        return a(a, b), generate

    @overload(symbol)
    def of_vectors(a, b):  # type: ignore[no-untyped-def]
        if isinstance(a, Vector) and a == b:
            return lambda a, b: function(a, b)
        return None


for _symbol in (operator.add, operator.sub, operator.mul):
    _binary(_symbol)


@intrinsic
def spread(context: Any, number: Any) -> Any:
    """Puts a number into all lanes."""
    kind = Vector(number)

    def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
        vector = ir.VectorType(_SCALARS[number], LANES)
        single = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], ir.Constant(_INT32, 0))
        mask = ir.Constant(ir.VectorType(_INT32, LANES), [ir.Constant(_INT32, 0)] * LANES)
        return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), mask)

    return kind(number), generate


@intrinsic
def total(context: Any, vector: Any) -> Any:
    """Adds the lanes up, in pairs."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
        numbers = [builder.extract_element(args[0], ir.Constant(_INT32, lane)) for lane in range(LANES)]
        while len(numbers) > 1:
            numbers = [builder.fadd(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        return numbers[0]

    return vector.scalar(vector), generate


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def load_integer(context: Any, address: Any) -> Any:
    """Reads an int64."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
        return builder.load(_pointer(builder, args[0], _INT64))

    return types.int64(types.int64), generate


@intrinsic
def size_of(context: Any, number: Any) -> Any:
    """Bytes of a number."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
        return ir.Constant(_INT64, number.bitwidth // 8)

    return types.int64(number), generate


@intrinsic
def take_next(context: Any, address: Any) -> Any:
    """Adds one to an int64 that threads share, and returns what it was."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
        pointer = _pointer(builder, args[0], _INT64)
        return builder.atomic_rmw("add", pointer, ir.Constant(_INT64, 1), "monotonic")

    return types.int64(types.int64), generate


def _loader(as_vector: bool, bfloat16: bool) -> Callable[..., Any]:
    @intrinsic
    def function(context: Any, address: Any, real: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
            def shape(kind: Any) -> Any:
                return ir.VectorType(kind, LANES) if as_vector else kind

            if not bfloat16:
                kind = _SCALARS[real]
                align = 8 if real == types.float64 else 4
                return builder.load(_pointer(builder, args[0], shape(kind)), align=align)
            raw = builder.load(_pointer(builder, args[0], shape(ir.IntType(16))), align=2)
            wide = builder.zext(raw, shape(_INT32))
            ones = ir.Constant(shape(_INT32), [ir.Constant(_INT32, 16)] * LANES if as_vector else 16)
            value = builder.bitcast(builder.shl(wide, ones), shape(ir.FloatType()))
            return value if real == types.float32 else builder.fpext(value, shape(ir.DoubleType()))

        return (Vector(real) if as_vector else real)(types.int64, real), generate

    return function


load, load_bfloat16 = _loader(True, False), _loader(True, True)
load_number, load_bfloat16_number = _loader(False, False), _loader(False, True)


def _rounded_to_bfloat16(builder: Any, value: Any) -> Any:
    """Rounds float32 to the nearest bfloat16, ties to even; NaN stays NaN."""
    x = Expression(builder, value)
    bits = x.bits()
    odd = builder.and_(builder.lshr(bits, x.constant(16, _INT32)), x.constant(1, _INT32))
    rounded = builder.add(builder.add(bits, x.constant(0x7FFF, _INT32)), odd)
    nan = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(nan, x.constant(0x7FC00000, _INT32), rounded)
    short = ir.IntType(16)
    vector = isinstance(value.type, ir.VectorType)
    return builder.trunc(
        builder.lshr(rounded, x.constant(16, _INT32)), ir.VectorType(short, LANES) if vector else short
    )


def _storer(bfloat16: bool) -> Callable[..., Any]:
    @intrinsic
    def function(context: Any, address: Any, value: Any) -> Any:
        real = getattr(value, "scalar", value)

        def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
            number, align = args[1], 8 if real == types.float64 else 4
            if bfloat16:
                if real == types.float64:
                    vector = isinstance(number.type, ir.VectorType)
                    narrow = ir.VectorType(ir.FloatType(), LANES) if vector else ir.FloatType()
                    number = builder.fptrunc(number, narrow)
                number, align = _rounded_to_bfloat16(builder, number), 2
            builder.store(number, _pointer(builder, args[0], number.type), align=align)
            return _context.get_dummy_value()

        return types.void(types.int64, value), generate

    return function


store, store_bfloat16 = _storer(False), _storer(True)
store_number, store_bfloat16_number = store, store_bfloat16
