"""The complex scan as registered operators: one node in compiled, exported, scripted and traced graphs."""

from torch import Tensor

from ..autograd import register
from ..implementation import load
from ..precision import accumulation_dtype
from .inputs import Gradients, Inputs, Outputs

_SCAN = "complex_scan"


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
    implementation: str,
    reverse: bool,
) -> Outputs:
    inputs = Inputs(u, delta, A, w, B, C, D, delta_bias, reverse)
    outputs: Outputs = load(_SCAN, implementation).forward(inputs, save_states)
    return outputs


def _describe(*, u: Tensor, B: Tensor, save_states: bool, implementation: str, **_: object) -> Outputs:
    batch, length, d_inner = u.shape
    groups, d_state = B.shape[2:]
    num_chunks = load(_SCAN, implementation).num_chunks(length) if save_states else 0
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
    implementation: str,
    reverse: bool,
) -> Gradients:
    inputs = Inputs(u, delta, A, w, B, C, D, delta_bias, reverse)
    grads: Gradients = load(_SCAN, implementation).backward(grad_y, states, inputs)
    return grads


register(_SCAN, _forward, _backward, _describe, save="save_states", operation=_SCAN)
