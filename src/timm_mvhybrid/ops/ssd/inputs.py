"""What every implementation of the state-space-duality scan takes and returns."""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Arguments of a scan, checked.

    Attributes:
        x: Input, (batch, length, heads, headdim).
        dt: Step sizes before bias and softplus, (batch, length, heads).
        A: Decay rates, (heads,).
        B: Input matrix, (batch, length, groups, d_state).
        C: Output matrix, (batch, length, groups, d_state).
        D: Skip weights, (heads,).
        dt_bias: Added to ``dt``, (heads,).
        dt_softplus: Whether δ is the softplus of the biased ``dt``.
        reverse: Whether time runs from the last token to the first.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    dt_softplus: bool
    reverse: bool = False


Outputs = tuple[Tensor, Tensor, Tensor]
"""y in the dtype of ``x``, (batch, length, heads, headdim); the last state, (batch, heads, headdim, d_state), in the
accumulation dtype; and the states that backward starts from, in a layout of the implementation's own, (chunks, batch,
heads, headdim, d_state), no chunks where they are not saved."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of x, dt, A, B, C, D and dt_bias in their dtypes; those of absent inputs are empty."""
