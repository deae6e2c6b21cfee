"""Means and products over spots for many folds, taken once for each part of the spots that all folds treat alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import EvaluationError
from .ridge import RidgePreset, ridge_setting
from .ridge_statistics import RidgeStatistics, factorise

NESTED_ALPHAS = tuple(float(10.0**power) for power in range(-3, 7))
"""Penalties that nested cross-validation chooses from."""


class FoldStatistics:
    """Statistics of the coarsest parts of the rows that every fold and group treats as one.

    Args:
        X: Features, (N, D).
        y: Targets, (N, genes).
        folds: Pairs of train and test rows, such as ``Fold``.
        group_of: Number of what a nested choice must not split, (N,); zeros where there is none.
    """

    def __init__(
        self, X: NDArray[Any], y: NDArray[np.float64], folds: Sequence[Any], group_of: NDArray[np.int64]
    ) -> None:
        self.X, self.y = X, y
        membership = np.zeros((len(X), len(folds) + 1), dtype=np.int64)
        membership[:, -1] = group_of
        for index, (train, _) in enumerate(folds):
            membership[train, index] = 1
        self.kinds, self.part_of = np.unique(membership, axis=0, return_inverse=True)
        self.part_of = self.part_of.ravel()
        self._statistics: dict[int, RidgeStatistics] = {}

    def part(self, part: int) -> RidgeStatistics:
        """Those of one part, computed when they are first asked for."""
        if part not in self._statistics:
            rows = self.part_of == part
            self._statistics[part] = RidgeStatistics.of(self.X[rows].astype(np.float64), self.y[rows])
        return self._statistics[part]

    def train(self, fold: int, *, without: int | None = None, only: int | None = None) -> RidgeStatistics:
        """Those of a fold's train part, without one of its groups, or of that group only."""
        kept = self.kinds[:, fold] == 1
        if without is not None:
            kept &= self.kinds[:, -1] != without
        if only is not None:
            kept &= self.kinds[:, -1] == only
        return RidgeStatistics.total([self.part(int(part)) for part in np.flatnonzero(kept)])

    def nested_alpha(
        self, fold: int, columns: NDArray[np.int64], preset: RidgePreset, num_components: int | None
    ) -> float:
        """Chooses the penalty of a fold by leaving out one of its train part's groups at a time, by mean squared error.

        Raises:
            EvaluationError: If there are fewer than two groups to train on.
        """
        groups = np.unique(self.kinds[self.kinds[:, fold] == 1, -1])
        if len(groups) < 2:
            raise EvaluationError(
                f"fold {fold}: `alpha='nested'` needs at least two groups to train on, and there is {len(groups)}; give "
                "`alpha` as a number"
            )
        squared_error = np.zeros(len(NESTED_ALPHAS))
        for group in groups:
            train = self.train(fold, without=int(group)).select(columns)
            held_out = self.train(fold, only=int(group)).select(columns)
            dim = len(train.x)
            # inner folds are smaller, and must not fail where the outer fold would not
            kept = None if num_components is None else min(num_components, train.num, dim)
            factors = factorise(train, ridge_setting(train.num, dim, len(columns), preset, kept, None))
            for index, candidate in enumerate(NESTED_ALPHAS):
                squared_error[index] += held_out.squared_error(
                    *factors.weights(candidate, early_stopping=False)
                )
        return NESTED_ALPHAS[int(squared_error.argmin())]
