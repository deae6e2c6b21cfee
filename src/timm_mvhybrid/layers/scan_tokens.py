"""What a scan reads of its tokens, between the projections of a mixer and the scan itself."""

from typing import NamedTuple

from torch import Tensor


class ScanTokens(NamedTuple):
    """The inputs of a scan at every token.

    A selective scan has one such tuple a direction. Hydra's matrix has one for both, and axes of its own in brackets.

    Attributes:
        x: Input, (batch, length, d_inner) or (batch, length, heads, headdim).
        dt: Step sizes before bias and softplus, (batch, length, d_inner) or (batch, length, 2, heads).
        B: Input matrix, (batch, length, [2,] groups, d_state).
        C: Output matrix, of the shape of ``B``.
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
