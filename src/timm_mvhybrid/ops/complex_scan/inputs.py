"""What the implementation of the complex scan takes and returns, in token-major layout."""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Arguments of a scan with complex poles; shapes as in :func:`.complex_scan`.

    Attributes:
        u: Input.
        delta: Step sizes before bias and softplus.
        A: Real parts of the poles.
        w: Imaginary parts.
        B: Input matrix, real parts first.
        C: Output matrix, real parts first.
        D: Skip weights.
        delta_bias: Added to ``delta``.
        reverse: Whether time runs from the last token to the first.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    w: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    reverse: bool = False


Outputs = tuple[Tensor, Tensor]
"""y in the dtype of ``u``, (batch, length, d_inner); the states before each chunk, (chunks, batch, groups, 2 pairs,
channels) with channels = d_inner / groups, in the accumulation dtype; no chunks where they are not saved."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of u, delta, A, w, B, C, D and delta_bias in their dtypes; those of absent inputs are empty."""
