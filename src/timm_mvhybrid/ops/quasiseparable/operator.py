"""Hydra's matrix as a registered operator, ``torch.ops.timm_mvhybrid.quasiseparable``, and its backward.

Plain torch and numba have forms of their own; any other implementation runs two of its SSD scans.
"""

import importlib
from types import ModuleType

from torch import Tensor

from ..autograd import register
from ..implementation import load
from ..precision import accumulation_dtype
from . import composed, cpu, cpu_backward
from .inputs import Gradients, Inputs

_SCAN = "ssd_scan"


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor,
    diagonal: Tensor,
    save_states: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    inputs = Inputs(x, dt, A, B, C, dt_bias, diagonal)
    if implementation == "cpu":
        return cpu.forward(inputs, save_states)
    if implementation == "numba":
        outputs: tuple[Tensor, Tensor] = _numba().forward(inputs, save_states)
        return outputs
    return composed.forward(load(_SCAN, implementation), inputs, save_states)


def _describe(
    *, x: Tensor, B: Tensor, save_states: bool, implementation: str, **_: object
) -> tuple[Tensor, Tensor]:
    shape = cpu.saved_shape(x, B, save_states)
    if implementation != "cpu":
        batch, length, heads, headdim = x.shape
        chunks = load(_SCAN, implementation).num_chunks(length) if save_states else 0
        shape = [2, chunks, batch, heads, headdim, B.shape[-1]]
    return x.new_empty(x.shape), x.new_empty(shape, dtype=accumulation_dtype(x.dtype))


def _backward(
    grad_y: Tensor,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor,
    diagonal: Tensor,
    implementation: str,
) -> Gradients:
    inputs = Inputs(x, dt, A, B, C, dt_bias, diagonal)
    if implementation == "cpu":
        return cpu_backward.backward(grad_y, states, inputs)
    if implementation == "numba":
        grads: Gradients = _numba().backward(grad_y, states, inputs)
        return grads
    return composed.backward(load(_SCAN, implementation), grad_y, states, inputs)


def _numba() -> ModuleType:
    """Imports what needs numba."""
    return importlib.import_module(f"{__package__}.numba")


register("quasiseparable", _forward, _backward, _describe, save="save_states", operation=_SCAN)
