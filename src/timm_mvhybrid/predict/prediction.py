"""What a predictor says of patches, and of the model whose features it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """Expression of patches, with bounds.

    Attributes:
        mean: Predicted expression, (patches, genes) float32, in the unit of the targets: log1p counts where the command
            fitted it.
        lower: Lower bound of the interval, of the same shape.
        upper: Upper bound.
        distance: How far each patch lies from the training data, (patches,) float32: 1 is what 95 % of the patches of
            left-out studies stay within, or the predictor's ``far_level``.
        far: Whether it lies farther than that, (patches,) bool; the intervals of such patches promise nothing.
    """

    mean: NDArray[np.float32]
    lower: NDArray[np.float32]
    upper: NDArray[np.float32]
    distance: NDArray[np.float32]
    far: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """The model whose features a predictor takes, and the patches that it saw.

    Attributes:
        name: Its timm name.
        weights: ``random``, ``pretrained`` or the checkpoint's file name.
        weights_sha256: SHA-256 of the weights' file; of the tensors themselves where there is no file.
        seed: Seed of random weights; None where they are not random.
        transform: Input size, normalisation, pooling and dtype, as the cache of embeddings is keyed by them.
        patch_size_px: Side of the patches in px; None where it is unknown.
        resolution_um_per_px: Their resolution in µm/px; None where it is unknown.
    """

    name: str
    weights: str
    weights_sha256: str
    seed: int | None = None
    transform: dict[str, Any] = field(default_factory=dict)
    patch_size_px: int | None = None
    resolution_um_per_px: float | None = None
