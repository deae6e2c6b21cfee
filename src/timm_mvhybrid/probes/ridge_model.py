"""Ridge regression of principal components that is kept: what it predicts, and how far features lie from its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import check_rows, finite_matrix, labels_vector
from .fold_statistics import FoldStatistics
from .ridge import ridge_setting
from .ridge_statistics import RidgeFactors, factorise

EXPLAINED = 0.5
"""Fraction of the variance whose components count one by one in the distance; the rest counts as one spread."""
_BLOCK_ROWS = 8192


@dataclass(frozen=True, eq=False, kw_only=True)
class RidgeModel:
    """A fitted regression: standardise, project, regress.

    prediction = ((x - mean) · scale) componentsᵀ coefficients + intercept

    Attributes:
        mean: Of the training features, (D,).
        scale: One over their deviation, (D,); 1 where a feature is constant.
        components: Principal components of the standardised features, (k, D), by falling variance.
        variances: Variance of the leading components, (q,) with q ≤ k, which together explain half of it.
        residual_variance: Mean variance of the directions beyond these.
        coefficients: Of the components, (k, genes).
        intercept: Means of the training targets, (genes,).
        alpha: Penalty.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    components: NDArray[np.float64]
    variances: NDArray[np.float64]
    residual_variance: float
    coefficients: NDArray[np.float64]
    intercept: NDArray[np.float64]
    alpha: float

    def apply(self, X: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predicts, and measures how far features lie from those of the training part.

        The distance is that of Mahalanobis under probabilistic PCA: with scores s of the leading q components, their
        variances λ, and r² the squared length of what the standardised features have beyond them,
        d² = Σ s²/λ + r²/σ². Directions of little variance share one σ². A stain that differs moves features along leading
        components, and standardising the many small ones, whose spread differs between studies anyway, would drown it.

        Source: Tipping & Bishop, Probabilistic principal component analysis (1999).

        Args:
            X: Features, (N, D), checked.

        Returns:
            Predictions, (N, genes), and distances, (N,).
        """
        predicted = np.empty((len(X), len(self.intercept)))
        distance = np.empty(len(X))
        num_leading = len(self.variances)
        for start in range(0, len(X), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            standard = (X[rows].astype(np.float64) - self.mean) * self.scale
            scores = standard @ self.components.T
            predicted[rows] = scores @ self.coefficients + self.intercept
            leading = np.square(scores[:, :num_leading])
            beyond = (np.square(standard).sum(axis=1) - leading.sum(axis=1)).clip(0)
            squared = (leading / self.variances).sum(axis=1) + beyond / self.residual_variance
            distance[rows] = np.sqrt(squared)
        return predicted, distance


def ridge_models(
    X: ArrayLike,
    y: ArrayLike,
    folds: Sequence[Any],
    num_components: int | None = 256,
    *,
    alpha: float | Literal["nested"] | None = None,
    groups: ArrayLike | None = None,
) -> list[RidgeModel]:
    """Fits each fold's train part with an intercept, exactly, from sums that all folds share.

    Args:
        X: Features, (N, D).
        y: Targets, (N, genes) or (N,).
        folds: Pairs of train and test rows, such as ``Fold``.
        num_components: Principal components; None keeps all.
        alpha: Penalty; None takes HEST's 100 / (components · genes), ``nested`` chooses one for each fold by leaving out
            one of the train part's groups at a time.
        groups: For ``nested``: what must not be split, such as the study of each row.

    Returns:
        A model for each fold.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, the features of a train part do not vary, there are
            fewer spots or features than components, or ``nested`` has fewer than two groups to train on.
    """
    features, targets = finite_matrix("X", X, np.float32), finite_matrix("y", y, np.float64)
    num_rows = check_rows(X=features, y=targets)
    group_of = np.zeros(num_rows, np.int64)
    if groups is not None:
        group_of = np.unique(labels_vector("groups", groups, num_rows), return_inverse=True)[1].ravel()
    statistics = FoldStatistics(features, targets, folds, group_of)
    chosen = np.arange(targets.shape[1])
    models = []
    for index, (train, _) in enumerate(folds):
        kept = min(len(train), features.shape[1]) if num_components is None else num_components
        penalty = statistics.nested_alpha(index, chosen, "intercept", kept) if alpha == "nested" else alpha
        setting = ridge_setting(len(train), features.shape[1], targets.shape[1], "intercept", kept, penalty)
        factors = factorise(statistics.train(index), setting)
        models.append(_model(factors, len(train), setting.alpha))
    return models


def _model(factors: RidgeFactors, num_train: int, alpha: float) -> RidgeModel:
    if factors.trace <= 0:
        raise EvaluationError("X: no feature varies between the training spots; embed with other weights")
    variances = np.square(factors.sigma) / num_train
    total = factors.trace / num_train
    explained = np.cumsum(variances) / total
    num_leading = min(int(np.searchsorted(explained, EXPLAINED)) + 1, int((variances > 0).sum()))
    rest = total - variances[:num_leading].sum()
    num_rest = min(num_train - 1, len(factors.scale)) - num_leading
    # where nothing is left over, what a new patch has beyond weighs as the least of the leading components
    least = variances[num_leading - 1]
    residual_variance = min(rest / num_rest, least) if num_rest > 0 and rest > 1e-9 * total else least
    return RidgeModel(
        mean=factors.shift,
        scale=factors.scale,
        # as it is read from a file, so that products round alike
        components=np.ascontiguousarray((factors.basis / factors.scale[:, None]).T),
        variances=variances[:num_leading],
        residual_variance=float(residual_variance),
        coefficients=factors.coefficients(alpha, early_stopping=False),
        intercept=factors.y_mean,
        alpha=alpha,
    )
