"""Ridge probe over many folds: one pass over the spots, one small factorisation for each fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import check_choice, check_rows, finite_matrix, labels_vector
from .fold_statistics import FoldStatistics
from .ridge import RidgePreset, ridge_probe, ridge_setting
from .ridge_statistics import factorise

RidgeSolver = Literal["auto", "recipe", "shared", "exact"]
# scikit-learn's own bounds for taking the covariance's eigenvectors, and for the full decomposition
_MAX_FEATURES_COVARIANCE, _MAX_SIDE_FULL, _RANDOMISED_FRACTION = 1000, 500, 0.8


@dataclass(frozen=True, eq=False, kw_only=True)
class RidgeFold:
    """Predictions of one fold.

    Attributes:
        prediction: (test spots, genes of the fold), float64.
        num_components: Principal components; None without PCA.
        alpha: Penalty used.
        solver: ``recipe``, ``shared`` or ``exact``.
    """

    prediction: NDArray[np.float64]
    num_components: int | None
    alpha: float
    solver: str


def deterministic_pca(num_train: int, dim: int, num_components: int | None) -> bool:
    """Says whether scikit-learn's PCA, if left to choose, decomposes exactly, not at random."""
    if num_components is None or max(num_train, dim) <= _MAX_SIDE_FULL:
        return True
    if dim <= _MAX_FEATURES_COVARIANCE and num_train >= 10 * dim:
        return True
    return num_components >= _RANDOMISED_FRACTION * min(num_train, dim)


def ridge_folds(
    X: ArrayLike,
    y: ArrayLike,
    folds: Sequence[Any],
    preset: RidgePreset = "hest",
    num_components: int | None = 256,
    *,
    alpha: float | Literal["nested"] | None = None,
    solver: RidgeSolver = "auto",
    columns: Sequence[NDArray[np.int64]] | None = None,
    groups: ArrayLike | None = None,
) -> list[RidgeFold]:
    """Fits and predicts every fold of ``ridge_probe``.

    Means and products over spots (XᵀX, XᵀY) are computed once for each part of the spots that all folds treat alike; each
    fold joins those of its train part and takes the eigenvectors of one D × D matrix.

    Args:
        X: Embeddings, (N, D).
        y: Targets, (N, genes) or (N,).
        folds: Pairs of train and test rows, such as ``Fold``.
        preset: As in ``ridge_probe``.
        num_components: As in ``ridge_probe``.
        alpha: Penalty; None takes the recipe's, ``nested`` chooses one for each fold by leaving out one of the train
            part's groups at a time, by mean squared error.
        solver: ``recipe`` runs scikit-learn fold by fold; ``shared`` follows the recipe from the sums, LSQR's early
            stopping included; ``exact`` does not stop early; ``auto`` is ``shared`` where that gives the recipe's numbers
            and ``recipe`` otherwise: where its PCA is a randomised one, and without PCA, where it computes in float32.
        columns: The genes of each fold, as columns of ``y``; None takes all.
        groups: For ``nested``: what must not be split, such as the study of each row.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, a fold has fewer spots than components, or
            ``nested`` has fewer than two groups to train on.
    """
    check_choice("solver", solver, RidgeSolver)
    features, targets = finite_matrix("X", X, np.float32), finite_matrix("y", y, np.float64)
    num_rows = check_rows(X=features, y=targets)
    if alpha == "nested" and groups is None:
        raise EvaluationError(
            "`alpha='nested'` needs groups, such as the study of each row; give `groups`, or `alpha` as a number"
        )
    group_of = np.zeros(num_rows, np.int64)
    if groups is not None and alpha == "nested":
        group_of = np.unique(labels_vector("groups", groups, num_rows), return_inverse=True)[1]
    parts = FoldStatistics(features, targets, folds, group_of)
    results = []
    for index, (train, test) in enumerate(folds):
        chosen = np.arange(targets.shape[1]) if columns is None else np.asarray(columns[index])
        penalty = parts.nested_alpha(index, chosen, preset, num_components) if alpha == "nested" else alpha
        setting = ridge_setting(len(train), features.shape[1], len(chosen), preset, num_components, penalty)
        how = solver
        if how == "auto":
            followed = num_components is not None and deterministic_pca(
                len(train), features.shape[1], num_components
            )
            how = "shared" if followed else "recipe"
        if how == "recipe":
            prediction = ridge_probe(
                features[train],
                targets[np.ix_(train, chosen)],
                features[test],
                preset,
                num_components,
                alpha=setting.alpha,
            )
        else:
            factors = factorise(parts.train(index).select(chosen), setting)
            weights, constants = factors.weights(setting.alpha, early_stopping=how == "shared")
            prediction = features[test].astype(np.float64) @ weights + constants
        results.append(
            RidgeFold(
                prediction=prediction, num_components=setting.num_components, alpha=setting.alpha, solver=how
            )
        )
    return results
