"""Embeddings, times and events → risks, by a linear Cox model."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from .arrays import binary_vector, check_rows, finite_matrix


def cox_risks(
    X_train: ArrayLike, event: ArrayLike, time: ArrayLike, X_test: ArrayLike, *, alpha: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fits a Cox model with a ridge penalty by scikit-survival and predicts log hazard ratios.

    Features are standardised by the train part and divided by √D, so that a penalty of 1 means the same for any
    width: log risks with a standard deviation of about 1 a priori. The penalty does not change under rotations,
    so the model is fitted in the span of the training patients, exactly, however wide the features are.

    Args:
        X_train: Features to fit on, (N, D).
        event: Whether the event was observed, (N,) bool or 0 and 1.
        time: Time to event or to the end of observation, (N,).
        X_test: Features to predict from, (M, D).
        alpha: Ridge penalty, above 0.

    Returns:
        Risks of the train part and of the test part, (N,) and (M,).

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, events are not coded as stated, no event was
            observed, all features are constant, or scikit-survival is not installed.
    """
    train, test = finite_matrix("X_train", X_train, np.float64), finite_matrix("X_test", X_test, np.float64)
    events = binary_vector("event", event, one="observed", zero="censored")
    times = finite_matrix("time", time, np.float64)[:, 0]
    check_rows(X_train=train, event=events, time=times)
    if not events.any():
        raise EvaluationError(f"none of {len(events)} training patients had an event; a Cox model needs some")
    if not alpha > 0:
        raise EvaluationError(f"`alpha`, the Cox model's penalty, must be above 0, not {alpha}")
    mean, std = train.mean(axis=0), train.std(axis=0)
    varies = std > 1e-12 * (np.abs(mean) + std)
    if not varies.any():
        raise EvaluationError("all features are constant over the training patients")
    scale = std[varies] * np.sqrt(varies.sum())
    train, test = (train - mean)[:, varies] / scale, (test - mean)[:, varies] / scale
    _, singular, rotation = np.linalg.svd(train, full_matrices=False)
    rotation = rotation[singular > 1e-10 * singular[0]].T
    survival = require("sksurv.util").Surv.from_arrays(events, times)
    model = require("sksurv.linear_model").CoxPHSurvivalAnalysis(alpha=alpha, n_iter=200)
    model.fit(train @ rotation, survival)
    return model.predict(train @ rotation), model.predict(test @ rotation)


def log_rank_p_value(event: ArrayLike, time: ArrayLike, group: ArrayLike) -> float:
    """Tests whether two groups differ in survival, by scikit-survival's log-rank test; see ``cox_risks`` for the arrays.

    Returns:
        The p-value; NaN where one group is empty or no event was observed.

    Raises:
        EvaluationError: If lengths differ, times are not finite, or events or groups are not coded as stated.
    """
    events = binary_vector("event", event, one="observed", zero="censored")
    groups = binary_vector("group", group, one="one group", zero="the other")
    times = finite_matrix("time", time, np.float64)[:, 0]
    check_rows(event=events, time=times, group=groups)
    if groups.all() or not groups.any() or not events.any():
        return float("nan")
    survival = require("sksurv.util").Surv.from_arrays(events, times)
    _, p_value = require("sksurv.compare").compare_survival(survival, groups)
    return float(p_value)
