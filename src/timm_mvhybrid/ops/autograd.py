"""Functions of tensors, forward and backward → one registered operator that autograd differentiates.

Every operator of this package is wired here, so that all behave alike: autocast is off inside, what backward reads is
kept only where that was asked for, the backward pass runs on the implementation that the forward pass ran on, an
argument that was None has no gradient, and gradients are contiguous.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .implementation import choose
from .precision import autocast_disabled

NAMESPACE = "timm_mvhybrid"
# the option of a scan that names what runs; "current" stands for the request in force
_IMPLEMENTATION = "implementation"
# the argument of a backward function that says which gradients are asked for; a number, because lists of bool are no
# type of an operator's argument in all versions of torch
_NEEDED = "needed"

Outputs = tuple[Tensor, ...]

ALL_NEEDED = -1
"""For ``needed`` of a backward function: all gradients are asked for."""


def is_needed(needed: int, index: int) -> bool:
    """Whether the gradient of a tensor argument is asked for: bit ``index`` of ``needed``, from the lowest."""
    return bool(needed >> index & 1)


def register(
    name: str,
    forward: Callable[..., Outputs],
    backward: Callable[..., Outputs],
    describe: Callable[..., Outputs],
    *,
    save: str,
    num_results: int = 1,
    operation: str | None = None,
) -> None:
    """Registers ``torch.ops.timm_mvhybrid.NAME``, ``NAME_backward``, and the derivative of the first by the second.

    The schemas are those of the annotated signatures. The outputs of ``forward`` are its results, followed by what
    ``backward`` needs. ``backward`` takes one gradient a result (the first a tensor, the others optional), then
    those further outputs, then whichever arguments of ``forward`` it needs, by name; it returns one gradient for
    each tensor argument of ``forward``, in their order, and any empty tensor for one that was None. A last argument
    ``needed`` (int) tells it which of these gradients are asked for, see :func:`is_needed`; for the others it returns
    whatever costs nothing, so that weights that are frozen, as under adapters, need not be differentiated.

    Args:
        name: Name of the operator.
        forward: Computes the outputs.
        backward: Computes the gradients; must take every tensor argument of ``forward``.
        describe: Returns empty tensors like the outputs, from the same arguments; it sees only shapes.
        save: The argument of ``forward`` that says whether backward will follow.
        num_results: Outputs that are differentiated.
        operation: For an operator with an argument ``implementation``: the operation of
            :data:`~timm_mvhybrid.ops.implementation.OPERATIONS` whose implementation it chooses. The functions see the
            choice.

    Raises:
        TypeError: The signatures do not fit each other.
    """
    parameters = inspect.signature(forward).parameters
    names = list(parameters)
    tensors = [key for key, value in parameters.items() if value.annotation in (Tensor, Tensor | None)]
    taken = list(inspect.signature(backward).parameters)
    kept = [key for key in taken if key in parameters]
    selective = taken[-1:] == [_NEEDED]
    num_saved = len(taken) - num_results - len(kept) - selective
    if (
        tensors != [key for key in kept if key in tensors]
        or save not in names
        or save in kept
        or num_saved < 1
    ):
        raise TypeError(
            f"operator {name}: backward({', '.join(taken)}) does not fit forward({', '.join(names)})"
        )
    options = [key for key in kept if key not in tensors]

    def resolved(arguments: dict[str, Any]) -> dict[str, Any]:
        """Replaces the requested implementation by the one that runs."""
        if operation is None:
            return arguments
        x = arguments[tensors[0]]
        chosen = choose(operation, arguments[_IMPLEMENTATION], x.device.type, x.dtype)
        return {**arguments, _IMPLEMENTATION: chosen}

    def named(function: Callable[..., Outputs], keys: list[str]) -> Callable[..., Outputs]:
        """Wraps a function of named arguments as one of positional arguments, with its signature."""

        @functools.wraps(function)
        def call(*args: Any) -> Outputs:
            return function(**resolved(dict(zip(keys, args, strict=True))))

        return call

    def computed(function: Callable[..., Outputs], keys: list[str]) -> Callable[..., Outputs]:
        """The same, outside autocast."""
        inner = named(function, keys)
        first = keys.index(tensors[0])

        @functools.wraps(function)
        def call(*args: Any) -> Outputs:
            with autocast_disabled(args[first].device.type):
                return inner(*args)

        return call

    def contiguous(*args: Any) -> Outputs:
        grads = computed(backward, taken)(*args)
        return tuple(
            grad.new_empty(0) if x is None else grad.contiguous()
            for grad, x in zip(grads, differentiated(args), strict=True)
        )

    def gradients(*args: Any) -> Outputs:
        """Describes what backward returns: tensors like the arguments."""
        like = args[taken.index(tensors[0])]
        return tuple(like.new_empty(0) if x is None else x.new_empty(x.shape) for x in differentiated(args))

    def differentiated(args: tuple[Any, ...]) -> list[Tensor | None]:
        """Lists the tensors of forward, with None for those whose gradient is not there or not asked for."""
        arguments = dict(zip(taken, args, strict=True))
        needed = arguments.get(_NEEDED, ALL_NEEDED)
        return [arguments[key] if is_needed(needed, index) else None for index, key in enumerate(tensors)]

    operator = torch.library.custom_op(f"{NAMESPACE}::{name}", computed(forward, names), mutates_args=())
    operator.register_fake(named(describe, names))
    backward_operator = torch.library.custom_op(
        f"{NAMESPACE}::{name}_backward", functools.wraps(backward)(contiguous), mutates_args=()
    )
    backward_operator.register_fake(gradients)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        arguments = dict(zip(names, inputs, strict=True))
        if not arguments[save]:
            raise RuntimeError(
                f"{NAMESPACE}::{name} was called with {save}=False on tensors that need a gradient; pass {save}=True"
            )
        ctx.save_for_backward(*output[num_results:], *(arguments[key] for key in tensors))
        # what forward ran, whatever is requested by then, because what it saved is in that implementation's own layout
        arguments = resolved(arguments)
        ctx.options = {key: arguments[key] for key in options}
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        arguments = {**dict(zip(tensors, saved[num_saved:], strict=True)), **ctx.options}
        asked = [ctx.needs_input_grad[names.index(key)] for key in tensors]
        first, *others = grads[:num_results]
        if first is None:
            # of the shape and dtype of the first result, which all operators here give like their first argument
            first = torch.zeros_like(arguments[tensors[0]])
        found = getattr(torch.ops.timm_mvhybrid, f"{name}_backward")(
            first,
            *others,
            *saved[:num_saved],
            *(arguments[key] for key in kept),
            *([sum(flag << index for index, flag in enumerate(asked))] if selective else []),
        )
        by_name = {
            key: grad if flag and arguments[key] is not None else None
            for key, grad, flag in zip(tensors, found, asked, strict=True)
        }
        return tuple(by_name.get(key) for key in names)

    operator.register_autograd(differentiate, setup_context=setup_context)
