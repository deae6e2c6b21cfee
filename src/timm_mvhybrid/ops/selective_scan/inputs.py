"""What every implementation of the selective scan takes and returns, in token-major layout."""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Arguments of a scan, checked.

    Attributes:
        u: Input, (batch, length, d_inner).
        delta: Step sizes before bias and softplus, (batch, length, d_inner).
        A: State matrix, (d_inner, d_state).
        B: Input matrix, (batch, length, groups, d_state).
        C: Output matrix, (batch, length, groups, d_state).
        D: Skip weights, (d_inner,).
        z: Gate, (batch, length, d_inner).
        delta_bias: Added to ``delta``, (d_inner,).
        delta_softplus: Whether δ is the softplus of the biased ``delta``.
        reverse: Whether time runs from the last token to the first.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    reverse: bool = False


Outputs = tuple[Tensor, Tensor, Tensor]
"""y in the dtype of ``u``, (batch, length, d_inner); the last state and the states before each chunk, (batch, groups,
d_state, channels) and (chunks, batch, groups, d_state, channels) with channels = d_inner / groups, in the accumulation
dtype; no chunks where the states are not saved."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of u, delta, A, B, C, D, z and delta_bias in their dtypes; those of absent inputs are empty."""
