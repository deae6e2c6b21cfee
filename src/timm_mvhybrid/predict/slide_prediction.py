"""What is predicted on one slide: patches, their places and values, the slide's picture; batches of embeddings → predictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.slide_source import SlideSource
from ..runtime.errors import EvaluationError
from .expression_predictor import ExpressionPredictor
from .prediction import Prediction

PICTURE_PX = 2000
"""Longer side of the picture of a slide, as Space Ranger makes it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SlidePrediction:
    """Predictions for the patches of one slide.

    Attributes:
        name: Of the slide, without suffix.
        coords: Top-left corners of the patches in level-0 px, (patches, 2) as x, y.
        patch_size_level0: Side of a patch in level-0 px.
        stride_level0: Distance of neighbouring patches in level-0 px.
        dimensions_px: Width and height of the slide in level-0 px.
        um_per_px: Size of a level-0 px in µm.
        picture: The whole slide, (H, W, 3) uint8.
        predictor: What predicted.
        prediction: Its predictions, a row for each patch.
        record: What was done: slide, predictor, options and versions, for ``uns`` of the h5ad.
    """

    name: str
    coords: NDArray[np.int64]
    patch_size_level0: float
    stride_level0: float
    dimensions_px: tuple[int, int]
    um_per_px: float
    picture: NDArray[np.uint8]
    predictor: ExpressionPredictor
    prediction: Prediction
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middles of the patches in level-0 px, (patches, 2) as x, y."""
        found: NDArray[np.float64] = np.add(self.coords, self.patch_size_level0 / 2, dtype=np.float64)
        return found

    @property
    def corners(self) -> NDArray[np.float64]:
        """Top-left corners of the squares that show the patches, in level-0 px; they are as far apart as wide."""
        found: NDArray[np.float64] = self.centres - self.stride_level0 / 2
        return found

    @property
    def picture_scale(self) -> float:
        """Px of the picture per level-0 px."""
        return self.picture.shape[1] / self.dimensions_px[0]

    @property
    def patch_names(self) -> list[str]:
        """Name of each patch, unique: its corner, ``XxY``."""
        return [f"{x}x{y}" for x, y in self.coords.tolist()]


def picture_of(source: SlideSource) -> NDArray[np.uint8]:
    """Shrinks a slide to ``PICTURE_PX``; a smaller one stays as it is."""
    found = source.slide.thumbnail(max(max(source.slide.dimensions) / PICTURE_PX, 1.0))
    source.close()
    return found


def predict_batches(
    predictor: ExpressionPredictor,
    batches: Iterable[NDArray[np.float32]],
    num_patches: int,
    level: float | None = None,
) -> Prediction:
    """Predicts a few patches at a time, so that beside the result nothing grows with their number.

    Args:
        predictor: A fitted predictor.
        batches: Embeddings, (B, D) each.
        num_patches: How many they are together.
        level: Coverage that intervals aim at; None takes the predictor's.

    Raises:
        EvaluationError: There are not as many embeddings.
        PredictorError: They are not of the model that the predictor was fitted on.
    """
    shape = (num_patches, len(predictor.genes_))
    mean, lower, upper = (np.empty(shape, np.float32) for _ in range(3))
    distance, far = np.empty(num_patches, np.float32), np.empty(num_patches, np.bool_)
    start = 0
    for batch in batches:
        found = predictor.predict(batch, level=level)
        rows = slice(start, start + len(batch))
        start += len(batch)
        if start > num_patches:
            break
        mean[rows], lower[rows], upper[rows] = found.mean, found.lower, found.upper
        distance[rows], far[rows] = found.distance, found.far
    if start != num_patches:
        raise EvaluationError(f"{start} embeddings of {num_patches} patches; remove them from the `cache`")
    return Prediction(mean=mean, lower=lower, upper=upper, distance=distance, far=far)


def genes_to_show(predictor: ExpressionPredictor, wanted: tuple[str, ...], most: int) -> NDArray[np.int64]:
    """Chooses the genes of page and GeoJSON: those that are wanted, otherwise the most reliable ones.

    Returns:
        Columns of the predictor.

    Raises:
        EvaluationError: The predictor does not predict one of them.
    """
    position = {name: index for index, name in enumerate(predictor.genes_)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise EvaluationError(
            f"`show_genes`: the predictor does not predict '{missing[0]}'; it predicts {', '.join(predictor.genes_[:5])}"
            f"{', …' if len(position) > 5 else ''}"
        )
    if wanted:
        return np.array([position[name] for name in dict.fromkeys(wanted)])
    return np.argsort(-predictor.reliability_.r, kind="stable")[:most]
