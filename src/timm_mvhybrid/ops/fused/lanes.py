"""Vectors of a fused kernel: ``LANES`` neighbouring numbers in registers, and the arithmetic on them.

numba has no vectors of its own and leaves it to LLVM to find them in loops, where it has to prove first that no two
buffers overlap. Here each operation on ``LANES`` numbers is written out, on memory that is given by its address; LLVM
splits it into as many registers as the processor has it fit. Products may be fused with the sum that takes them, and
nothing else is assumed, of NaN and infinity in particular.

Imported where numba is installed, at the first use of a kernel.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic, overload

from . import formulas
from .formulas import Expression

LANES = 16
"""Numbers in a vector: the channels that a kernel takes at a time."""

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_SCALARS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}

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


def _unary(formula: Callable[[Expression], Expression]) -> Callable[..., Any]:
    @intrinsic
    def function(context: Any, x: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Sequence[Any]) -> Any:
            return formula(Expression(builder, args[0])).value

        return x(x), generate

    return function


exp2 = _unary(formulas.power_of_two)
softplus = _unary(formulas.softplus)
softplus_slope = _unary(formulas.softplus_slope)
silu = _unary(formulas.silu)
silu_slope = _unary(formulas.silu_slope)
# cos(π x) and sin(π x); what both compute of one x, LLVM computes once
cospi = _unary(formulas.cosine)
sinpi = _unary(formulas.sine)


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
