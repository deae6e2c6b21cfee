"""The complex scan as registered operators: one node in compiled, exported, scripted and traced graphs."""

from torch import Tensor

from ..autograd import register
from ..precision import accumulation_dtype
from . import cpu
from .inputs import Gradients, Inputs, Outputs


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    w: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    save_states: bool,
    reverse: bool,
) -> Outputs:
    return cpu.forward(Inputs(u, delta, A, w, B, C, D, delta_bias, reverse), save_states)


def _describe(*, u: Tensor, B: Tensor, save_states: bool, **_: object) -> Outputs:
    batch, length, d_inner = u.shape
    groups, d_state = B.shape[2:]
    num_chunks = cpu.num_chunks(length) if save_states else 0
    states = (num_chunks, batch, groups, d_state, d_inner // groups)
    return u.new_empty(u.shape), u.new_empty(states, dtype=accumulation_dtype(u.dtype))


def _backward(
    grad_y: Tensor,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    w: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    reverse: bool,
) -> Gradients:
    return cpu.backward(grad_y, states, Inputs(u, delta, A, w, B, C, D, delta_bias, reverse))


register("complex_scan", _forward, _backward, _describe, save="save_states")
