"""Predictions of left-out studies → for each gene, how well it is predicted where nothing was fitted, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import check_rows, finite_matrix
from .expression_metrics import expression_metrics
from .resampling import LEVEL, NUM_RESAMPLES, correlation_interval


@dataclass(frozen=True, eq=False, kw_only=True)
class GeneReliability:
    """How well each gene is predicted in studies that were left out.

    Attributes:
        studies: The studies, one after the other left out.
        by_study: Pearson correlation of predicted with measured expression over the spots of each, (studies, genes); NaN
            where the gene is constant there.
        r: Mean over the studies, (genes,); NaN where no study has one.
        lower: Lower end of its interval, see :func:`~.resampling.correlation_interval`, (genes,); NaN with fewer than two
            studies.
        upper: Upper end.
        level: Confidence of the interval.
    """

    studies: tuple[str, ...]
    by_study: NDArray[np.float64]
    r: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    level: float = LEVEL

    @property
    def predictable(self) -> NDArray[np.bool_]:
        """Whether the interval lies above 0, (genes,); without an interval it does not."""
        above: NDArray[np.bool_] = self.lower > 0
        return above


def gene_reliability(
    y: ArrayLike,
    prediction: ArrayLike,
    folds: Sequence[Any],
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> GeneReliability:
    """Correlates predicted with measured expression within each left-out study, and resamples studies and spots.

    Studies are few and share most of what they were trained on, so the intervals tend to be too narrow.

    Args:
        y: Measured, (N, genes).
        prediction: Of the same rows, each by a model that was not fitted on its study.
        folds: One for each study, with its rows as test part, such as ``study_folds`` gives.
        level: Confidence of the intervals.
        num_resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        For each gene its correlation and interval.

    Raises:
        EvaluationError: If shapes do not fit or values are not finite.
    """
    measured, predicted = (
        finite_matrix("y", y, np.float64),
        finite_matrix("prediction", prediction, np.float64),
    )
    check_rows(y=measured, prediction=predicted)
    by_study = np.stack(
        [expression_metrics(measured[test], predicted[test]).pcc_per_gene for _, test in folds]
    )
    present = ~np.isnan(by_study)
    num_present = present.sum(axis=0)
    sums = np.where(present, by_study, 0.0).sum(axis=0)
    r = np.divide(sums, num_present, out=np.full(len(sums), np.nan), where=num_present > 0)
    lower, upper = np.full(len(r), np.nan), np.full(len(r), np.nan)
    num_spots = [len(test) for _, test in folds]
    for gene in range(len(r)):
        found = correlation_interval(
            by_study[:, gene], num_spots, level=level, num_resamples=num_resamples, seed=seed
        )
        if found is not None:
            lower[gene], upper[gene] = found.low, found.high
    return GeneReliability(
        studies=tuple(str(fold.name) for fold in folds),
        by_study=by_study,
        r=r,
        lower=lower,
        upper=upper,
        level=level,
    )
