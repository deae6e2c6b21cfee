"""What every form of Hydra's matrix takes and returns."""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Arguments of a product with the matrix.

    Attributes:
        x: Input, (batch, length, heads, headdim).
        dt: Step sizes before bias and softplus, (batch, length, 2, heads), forward direction first.
        A: Decay rates of both directions, (heads,).
        B: Input matrices, (batch, length, 2, groups, d_state).
        C: Output matrices, of the shape of ``B``.
        dt_bias: Added to ``dt``, (heads,).
        diagonal: The matrix's diagonal, (batch, length, heads).
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    dt_bias: Tensor
    diagonal: Tensor


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of x, dt, A, B, C, dt_bias and diagonal in their dtypes."""
