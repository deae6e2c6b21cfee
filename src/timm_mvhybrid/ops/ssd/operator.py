"""The state-space-duality scan as registered operators, ``torch.ops.timm_mvhybrid.ssd_scan`` and its backward."""

from torch import Tensor

from ..autograd import register
from ..implementation import load
from ..precision import accumulation_dtype
from .inputs import Gradients, Inputs, Outputs

_SCAN = "ssd_scan"


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    save_states: bool,
    implementation: str,
    reverse: bool,
) -> Outputs:
    outputs: Outputs = load(_SCAN, implementation).forward(
        Inputs(x, dt, A, B, C, D, dt_bias, dt_softplus, reverse), save_states
    )
    return outputs


def _describe(*, x: Tensor, B: Tensor, save_states: bool, implementation: str, **_: object) -> Outputs:
    dtype = accumulation_dtype(x.dtype)
    batch, length, heads, headdim = x.shape
    state = (batch, heads, headdim, B.shape[-1])
    chunks = load(_SCAN, implementation).num_chunks(length) if save_states else 0
    return x.new_empty(x.shape), x.new_empty(state, dtype=dtype), x.new_empty((chunks, *state), dtype=dtype)


def _backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    implementation: str,
    reverse: bool,
) -> Gradients:
    inputs = Inputs(x, dt, A, B, C, D, dt_bias, dt_softplus, reverse)
    grads: Gradients = load(_SCAN, implementation).backward(grad_y, grad_last_state, states, inputs)
    return grads


register("ssd_scan", _forward, _backward, _describe, save="save_states", num_results=2, operation=_SCAN)
