"""The selective scan as registered operators: one node in compiled, exported, scripted and traced graphs.

``torch.ops.timm_mvhybrid.selective_scan`` works in token-major layout, the layout that linear layers produce.
"""

from torch import Tensor

from ..autograd import register
from ..implementation import load
from ..precision import accumulation_dtype
from .inputs import Gradients, Inputs, Outputs

_SCAN = "selective_scan"


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
    implementation: str,
    reverse: bool,
) -> Outputs:
    outputs: Outputs = load(_SCAN, implementation).forward(
        Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse), save_states
    )
    return outputs


def _describe(*, u: Tensor, B: Tensor, save_states: bool, implementation: str, **_: object) -> Outputs:
    dtype = accumulation_dtype(u.dtype)
    batch, length, d_inner = u.shape
    groups, d_state = B.shape[2:]
    state = (batch, groups, d_state, d_inner // groups)
    num_chunks = load(_SCAN, implementation).num_chunks(length) if save_states else 0
    return (
        u.new_empty(u.shape),
        u.new_empty(state, dtype=dtype),
        u.new_empty((num_chunks, *state), dtype=dtype),
    )


def _backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    implementation: str,
    reverse: bool,
    needed: int,
) -> Gradients:
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    module = load(_SCAN, implementation)
    # kernels of other implementations compute all of them at once
    selection = {"needed": needed} if implementation == "cpu" else {}
    grads: Gradients = module.backward(grad_y, grad_last_state, states, inputs, **selection)
    return grads


register("selective_scan", _forward, _backward, _describe, save="save_states", num_results=2, operation=_SCAN)
