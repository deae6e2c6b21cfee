"""Residuals of left-out studies → how wide an interval must be for a study that nobody has seen."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import check_choice, check_rows, finite_matrix, labels_vector

Calibration = Literal["pooled", "hierarchical"]
NUM_STEPS = 200
"""Steps of the grid on which quantiles are kept: levels are multiples of half a percent."""
_ROUNDING = 1e-9


def grouped_quantiles(
    scores: ArrayLike, groups: ArrayLike, num_steps: int = NUM_STEPS
) -> NDArray[np.float64]:
    """Takes quantiles of the mixture in which every group weighs the same, whatever its number of rows.

    With K groups of N_k rows the mixture has the distribution F = 1/K Σ_k F_k, and F_k that of the rows of group k. A
    quantile at p is the smallest score at which F reaches p, so that no score is interpolated.

    Args:
        scores: Such as absolute residuals, (N,) or (N, columns).
        groups: The group of each row, such as its study, (N,).
        num_steps: Steps of the grid.

    Returns:
        (num_steps + 1, columns): row i is the quantile at i / num_steps; row 0 is the lowest score.

    Raises:
        EvaluationError: If shapes do not fit or a score is not finite.
    """
    table = finite_matrix("scores", scores, np.float64)
    labels = labels_vector("groups", groups, len(table))
    check_rows(scores=table, groups=labels)
    group_of, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    weights = (1 / (len(counts) * counts))[group_of.ravel()]
    wanted = np.arange(num_steps + 1) / num_steps
    quantiles = np.empty((num_steps + 1, table.shape[1]))
    for column, values in enumerate(table.T):
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(weights[order])
        # weights add up to 1 up to rounding, and p must be reached where it is in exact arithmetic
        place = np.searchsorted(reached, wanted - _ROUNDING)
        quantiles[:, column] = values[order[np.minimum(place, len(values) - 1)]]
    return quantiles


def conformal_width(
    quantiles: NDArray[np.floating], level: float, num_groups: int, calibration: Calibration = "pooled"
) -> NDArray[np.float64]:
    """Looks up the half width of intervals for the rows of a new group.

    ``pooled`` takes the quantile of F at ``level``. Averaged over new groups the coverage tends to the level as groups
    become many; with few it may be a little below. ``hierarchical`` gives the new group, of which nothing is known, a
    weight of its own at infinity: F is multiplied by K / (K + 1), and the quantile taken at level · (K + 1) / K. If groups
    are exchangeable and scores come from a model that was fitted on others, a row drawn from a new group is covered with
    at least the level, whatever the distributions and however few the groups; below K = level / (1 - level) groups that
    takes an infinite width.

    Source: pooling of distribution functions, Dunn, Wasserman & Ramdas (arXiv 1809.07441); hierarchical conformal
    prediction, Lee, Barber & Willett (arXiv 2306.06342).

    Args:
        quantiles: By ``grouped_quantiles``, (steps + 1, columns).
        level: Wanted coverage, above 0 and below 1; on the grid, or the next step above counts.
        num_groups: Groups that the scores are of, K.
        calibration: ``pooled`` or ``hierarchical``.

    Returns:
        (columns,); infinite where ``hierarchical`` cannot promise the level.

    Raises:
        EvaluationError: If the level or the calibration does not exist.
    """
    check_choice("calibration", calibration, Calibration)
    if not 0 < level < 1:
        raise EvaluationError(f"`level` must lie between 0 and 1, not {level}")
    wanted = level if calibration == "pooled" else level * (num_groups + 1) / num_groups
    num_steps = len(quantiles) - 1
    step = int(np.ceil(wanted * num_steps - _ROUNDING))
    if step > num_steps:
        return np.full(quantiles.shape[1], np.inf)
    return quantiles[step].astype(np.float64)
