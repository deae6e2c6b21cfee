"""Ridge probe over many folds: one pass over the spots, one small factorisation for each fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import check_rows, finite_matrix, labels_vector
from .ridge import RidgePreset, ridge_probe, ridge_setting
from .ridge_statistics import RidgeStatistics, factorise

RidgeSolver = Literal["auto", "recipe", "shared", "exact"]
NESTED_ALPHAS = tuple(float(10.0**power) for power in range(-3, 7))
"""Penalties that nested cross-validation chooses from."""
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
    """Says whether scikit-learn's PCA, if left to choose, decomposes exactly, not at random.

    Args:
        num_train: Spots to fit on.
        dim: Features.
        num_components: Number of components; None without PCA.
    """
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

    Sums over spots (XᵀX, XᵀY) are computed once for each part of the spots that all folds treat alike; each fold adds
    those of its train part and takes the eigenvectors of one D × D matrix.

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

    Returns:
        One for each fold.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, a fold has fewer spots than components, or
            ``nested`` has fewer than two groups to train on.
    """
    if solver not in get_args(RidgeSolver):
        raise EvaluationError(
            f"unknown ridge solver '{solver}'; choose from {', '.join(get_args(RidgeSolver))}"
        )
    features, targets = finite_matrix("X", X, np.float32), finite_matrix("y", y, np.float64)
    num_rows = check_rows(X=features, y=targets)
    if alpha == "nested" and groups is None:
        raise EvaluationError("a nested choice of alpha needs groups, such as the study of each row")
    group_of = np.zeros(num_rows, np.int64)
    if groups is not None and alpha == "nested":
        group_of = np.unique(labels_vector("groups", groups, num_rows), return_inverse=True)[1]
    parts = _Parts(features, targets, folds, group_of)
    results = []
    for index, (train, test) in enumerate(folds):
        chosen = np.arange(targets.shape[1]) if columns is None else np.asarray(columns[index])
        penalty = parts.nested_alpha(index, chosen, preset, num_components) if alpha == "nested" else alpha
        setting = ridge_setting(
            len(train),
            features.shape[1],
            len(chosen),
            preset,
            num_components,
            penalty,
        )
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
            factors = factorise(parts.train(index).select(chosen), parts.origin, setting)
            weights, constants = factors.weights(setting.alpha, early_stopping=how == "shared")
            prediction = features[test].astype(np.float64) @ weights + constants
        results.append(
            RidgeFold(
                prediction=prediction, num_components=setting.num_components, alpha=setting.alpha, solver=how
            )
        )
    return results


class _Parts:
    """Statistics of the coarsest parts of the rows that every fold and group treats as one."""

    def __init__(
        self,
        X: NDArray[Any],
        y: NDArray[np.float64],
        folds: Sequence[Any],
        group_of: NDArray[np.int64],
    ) -> None:
        self.X, self.y = X, y
        membership = np.zeros((len(X), len(folds) + 1), dtype=np.int64)
        membership[:, -1] = group_of
        for index, (train, _) in enumerate(folds):
            membership[train, index] = 1
        self.kinds, self.part_of = np.unique(membership, axis=0, return_inverse=True)
        self.part_of = self.part_of.ravel()
        self.origin: NDArray[np.float64] = X.mean(axis=0, dtype=np.float64)
        self._statistics: dict[int, RidgeStatistics] = {}

    def part(self, part: int) -> RidgeStatistics:
        if part not in self._statistics:
            rows = self.part_of == part
            self._statistics[part] = RidgeStatistics.of(
                self.X[rows].astype(np.float64) - self.origin, self.y[rows]
            )
        return self._statistics[part]

    def train(self, fold: int, *, without: int | None = None, only: int | None = None) -> RidgeStatistics:
        kept = self.kinds[:, fold] == 1
        if without is not None:
            kept &= self.kinds[:, -1] != without
        if only is not None:
            kept &= self.kinds[:, -1] == only
        return RidgeStatistics.total([self.part(int(part)) for part in np.flatnonzero(kept)])

    def nested_alpha(
        self, fold: int, columns: NDArray[np.int64], preset: RidgePreset, num_components: int | None
    ) -> float:
        groups = np.unique(self.kinds[self.kinds[:, fold] == 1, -1])
        if len(groups) < 2:
            raise EvaluationError(
                f"fold {fold}: a nested choice of alpha needs at least two groups to train on, and there is "
                f"{len(groups)}; give alpha as a number"
            )
        squared_error = np.zeros(len(NESTED_ALPHAS))
        for group in groups:
            train = self.train(fold, without=int(group)).select(columns)
            held_out = self.train(fold, only=int(group)).select(columns)
            dim = len(train.x)
            # inner folds are smaller, and must not fail where the outer fold would not
            kept = None if num_components is None else min(num_components, train.num, dim)
            factors = factorise(
                train, self.origin, ridge_setting(train.num, dim, len(columns), preset, kept, None)
            )
            for index, candidate in enumerate(NESTED_ALPHAS):
                weights, constants = factors.weights(candidate, early_stopping=False)
                # the statistics are of features less the origin
                shifted = constants + self.origin @ weights
                squared_error[index] += _squared_error(held_out, weights, shifted)
        return NESTED_ALPHAS[int(squared_error.argmin())]


def _squared_error(
    statistics: RidgeStatistics, weights: NDArray[np.float64], constants: NDArray[np.float64]
) -> float:
    fitted = np.sum(weights * (statistics.xx @ weights - 2 * statistics.xy))
    by_constants = 2 * statistics.x @ weights + statistics.num * constants - 2 * statistics.y
    return float(fitted + constants @ by_constants + statistics.yy.sum())
