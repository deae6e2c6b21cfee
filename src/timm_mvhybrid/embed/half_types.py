"""Whether a model may compute in bfloat16: where the processor is fast at it, and the features stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

DTypeName = Literal["float32", "bfloat16", "float16"]

LEAST_COSINE = 0.9999
"""Between the vectors of a patch in float32 and in bfloat16, for bfloat16 to be taken."""


@dataclass(frozen=True, kw_only=True)
class DTypeChoice:
    """The type in which a model computes.

    Attributes:
        dtype: Autocast type.
        reason: Why, in words, where the choice was left open; None where the type was given.
    """

    dtype: DTypeName
    reason: str | None = None

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """Makes what the model runs in."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.dtype))


Compute = Callable[[DTypeChoice], NDArray[np.float32]]
"""Type that a model computes in → vectors of a batch, (patches, dim)."""


def choose_dtype(device: torch.device, compute: Compute) -> DTypeChoice:
    """Takes bfloat16 where the device multiplies it fast and a batch agrees with float32, and float32 otherwise.

    Args:
        device: Where the model is.
        compute: Computes the same batch in either type.

    Returns:
        The choice, and its reason.
    """
    if not multiplies_bfloat16_fast(device):
        return DTypeChoice(
            dtype="float32",
            reason=f"{device.type} has no fast products of bfloat16, or none that is known of",
        )
    half = DTypeChoice(dtype="bfloat16")
    cosine = _smallest_cosine(compute(DTypeChoice(dtype="float32")), compute(half))
    agrees = cosine >= LEAST_COSINE
    return DTypeChoice(
        dtype="bfloat16" if agrees else "float32",
        reason=f"cosine of bfloat16 with float32 in the first batch {cosine:.6f}, "
        f"{'at least' if agrees else 'not at least'} {LEAST_COSINE}",
    )


def multiplies_bfloat16_fast(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16: AMX or AVX-512 BF16, or a GPU that does not emulate it.

    Elsewhere torch computes them by way of float32, in more time than float32 itself takes.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # torch has no public name for what oneDNN will take
    asked = (
        getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return any(is_supported() for is_supported in asked if is_supported is not None)


def _smallest_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Computes the cosine of rows in float64; NaN if a number is not finite, 1 of two rows of zeros."""
    x, y = (vectors.astype(np.float64) for vectors in (a, b))
    products = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    both_zero = (x == 0).all(axis=1) & (y == 0).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(both_zero, 1.0, (x * y).sum(axis=1) / products).min())
