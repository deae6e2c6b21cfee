"""True and predicted classes → accuracy, kappa, F1, area under the ROC curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.extras import require


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How well classes were predicted; NaN where a score does not exist or labels are unknown.

    Attributes:
        accuracy: Fraction of correct predictions.
        balanced_accuracy: Mean recall over the classes present.
        quadratic_kappa: Cohen's kappa with quadratic weights, by the classes' sorted order.
        weighted_f1: F1 score, weighted by the classes' frequencies.
        auroc: Area under the ROC curve; one against one, macro-averaged, for more than two classes.
    """

    accuracy: float = math.nan
    balanced_accuracy: float = math.nan
    quadratic_kappa: float = math.nan
    weighted_f1: float = math.nan
    auroc: float = math.nan


def accuracies(truth: NDArray[Any], prediction: NDArray[Any]) -> dict[str, float]:
    """Computes ``accuracy``, and ``balanced_accuracy``, the mean recall over the classes present."""
    right = prediction == truth
    recalls = [right[truth == name].mean() for name in np.unique(truth)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(recalls))}


def class_scores(
    truth: NDArray[Any], prediction: NDArray[Any], probability: NDArray[np.float64], classes: NDArray[Any]
) -> ClassScores:
    """Scores predictions, (M,), as UNI's code does; ``auroc`` is NaN where the test part lacks one of the classes.

    The columns of ``probability``, (M, classes), are those of ``classes``, which are sorted.
    """
    metrics = require("sklearn.metrics")
    auroc = math.nan
    if set(np.unique(truth)) == set(classes):
        if len(classes) == 2:
            auroc = float(metrics.roc_auc_score(truth == classes[1], probability[:, 1]))
        else:
            auroc = float(
                metrics.roc_auc_score(truth, probability, multi_class="ovo", average="macro", labels=classes)
            )
    joint = np.unique(np.concatenate([classes, truth]))
    # kappa compares agreement with chance, which is 1 where there is a single class
    varied = len(np.unique(np.concatenate([truth, prediction]))) > 1
    kappa = (
        float(metrics.cohen_kappa_score(truth, prediction, weights="quadratic", labels=joint))
        if varied
        else math.nan
    )
    return ClassScores(
        **accuracies(truth, prediction),
        quadratic_kappa=kappa,
        weighted_f1=float(metrics.f1_score(truth, prediction, average="weighted", zero_division=0)),
        auroc=auroc,
    )
