"""A tensor together with its derivatives along several directions, carried through a model function by function.

``torch.vmap`` of ``torch.func.jvp`` says the same, but composes each derivative of many light operations, each of which
passes through memory once for every direction. Here each function of torch that a model calls on such a tensor has a rule:
it computes the value once, and then moves all directions with what they share, in few passes. Functions without a rule go
the way of torch.func, one by one, so that no model has to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..transforms import in_forward_mode

Function = Callable[..., Any]
_RULES: dict[Function, Function] = {}


class ForwardModeError(RuntimeError):
    """A function cannot be followed by :class:`Dual`; torch.func may be able to take the whole model."""


class Dual(Tensor):
    """A value, and how it moves along each direction.

    Its shape, dtype and device are those of the value. What torch's functions make of it is a :class:`Dual` again, or
    plain where nothing moves: sizes, comparisons, integers.

    Attributes:
        primal: The value.
        tangents: Its derivatives, (directions, *shape of the value).
    """

    primal: Tensor
    tangents: Tensor

    def __new__(cls, primal: Tensor, tangents: Tensor) -> Dual:
        """Joins a value and its derivatives, which are not copied."""
        make: Any = Tensor._make_wrapper_subclass
        self: Dual = make(
            cls,
            primal.shape,
            strides=primal.stride(),
            dtype=primal.dtype,
            device=primal.device,
        )
        self.primal, self.tangents = primal, tangents
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls the function's rule, or torch.func where it has none or the rule returns ``NotImplemented``."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            own = _RULES.get(func)
            found = NotImplemented if own is None else own(*args, **kwargs)
            return _composed(func, args, kwargs) if found is NotImplemented else found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Refuses what got past the rules, which would see the value alone."""
        raise ForwardModeError(f"{func} is called where its arguments' derivatives cannot be seen")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Dual({self.primal!r}, directions={len(self.tangents)})"


def rule(*functions: Function) -> Callable[[Function], Function]:
    """Registers the rule of functions: it takes their arguments, and returns their result or ``NotImplemented``."""

    def register(own: Function) -> Function:
        _RULES.update(dict.fromkeys(functions, own))
        return own

    return register


def call(function: Function, *arguments: Any) -> Any:
    """Calls a function of our own, which torch does not know, by its rule where an argument is a :class:`Dual`."""
    if any(isinstance(x, Dual) for x in arguments):
        return Dual.__torch_function__(function, (), arguments)
    return function(*arguments)


def derivatives(function: Function, x: Tensor, directions: Tensor) -> Tensor:
    """Differentiates a function at one input along several directions, exactly.

    Args:
        function: Takes and returns a tensor, a model for instance.
        x: Where.
        directions: (directions, *shape of ``x``).

    Returns:
        (directions, *shape of the function's result).

    Raises:
        ForwardModeError: The function changes a tensor in place in a way that cannot be followed.
    """
    # in inference mode nothing says that a tensor was changed; copies, because a first layer may work in place
    with torch.inference_mode(False), torch.no_grad(), in_forward_mode():
        result = function(Dual(x.clone(), directions.clone()))
    if isinstance(result, Dual):
        return result.tangents
    return result.new_zeros((len(directions), *result.shape))


def _composed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Differentiates any function of torch by torch.func."""
    leaves, form = tree_flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Dual)]
    duals = [leaves[place] for place in places]
    primals = tuple(dual.primal for dual in duals)

    def on(*values: Tensor) -> tuple[list[Any], Any]:
        filled = list(leaves)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        positional, named = tree_unflatten(filled, form)
        return tree_flatten(func(*positional, **named))

    # what does not move counts, too: whatever is written into it would not move either
    watched = [
        x
        for x in (*primals, *leaves)
        if isinstance(x, Tensor) and not isinstance(x, Dual) and not x.is_inference()
    ]
    versions = [x._version for x in watched]
    values, result_form = on(*primals)
    if versions != [x._version for x in watched]:
        raise ForwardModeError(f"{getattr(func, '__name__', func)} changes its argument in place")
    moves = [place for place, value in enumerate(values) if _can_move(value)]
    if moves:

        def moved(*tangents: Tensor) -> tuple[Tensor, ...]:
            def smooth(*at: Tensor) -> tuple[Tensor, ...]:
                found, _ = on(*at)
                return tuple(found[place] for place in moves)

            along: tuple[Tensor, ...] = jvp(smooth, primals, tangents)[1]
            return along

        along = vmap(moved)(*(dual.tangents for dual in duals))
        for place, tangents in zip(moves, along, strict=True):
            values[place] = Dual(values[place], tangents)
    return tree_unflatten(values, result_form)


def _can_move(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
