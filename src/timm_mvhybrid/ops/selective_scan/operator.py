"""The selective scan as registered operators: one node in compiled, exported, scripted and traced graphs.

``torch.ops.timm_mvhybrid.selective_scan`` works in token-major layout, the layout that linear layers produce.
"""

from torch import Tensor

from ..autograd import register
from ..implementation import load
from ..precision import accumulation_dtype

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
) -> tuple[Tensor, Tensor, Tensor]:
    outputs: tuple[Tensor, Tensor, Tensor] = load(_SCAN, implementation).forward(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, save_states, reverse
    )
    return outputs


def _describe(
    *, u: Tensor, B: Tensor, save_states: bool, implementation: str, **_: object
) -> tuple[Tensor, Tensor, Tensor]:
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = load(
        _SCAN, implementation
    ).backward(grad_y, grad_last_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    return grads


register("selective_scan", _forward, _backward, _describe, save="save_states", num_results=2, operation=_SCAN)
