"""Linear probe: logistic regression by UNI's recipe; true and predicted classes → accuracy, kappa, F1, area under the ROC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from .arrays import check_rows, check_width, distinct_rows, finite_matrix, labels_vector


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


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbeResult(ClassScores):
    """What a probe predicts, and how well where the true labels are known.

    Attributes:
        prediction: Predicted labels, (M,), as in ``y_train``.
        probability: (M, classes), rows sum to 1.
        classes: The labels of the columns, sorted.
    """

    prediction: NDArray[Any]
    probability: NDArray[np.float64]
    classes: NDArray[Any]


def linear_probe(
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike | None = None,
    *,
    max_iter: int = 1000,
    cost: float | None = None,
) -> ProbeResult:
    """Fits a softmax regression by L-BFGS and classifies.

    Minimises mean cross-entropy + ½ ‖W‖₂ / cost from zero weights; the norm is not squared, the bias is free, and
    cost = features · classes / 100. Features enter as they are.

    Source: UNI's ``eval_linear_probe``.

    Args:
        X_train: Embeddings to fit on, (N, D); used as float32.
        y_train: Their labels, (N,), numbers or strings.
        X_test: Embeddings to classify, (M, D).
        y_test: Their labels; None leaves the scores NaN.
        max_iter: Iterations of L-BFGS with the strong Wolfe line search.
        cost: Inverse strength of the penalty; None takes the recipe's.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, or all training labels are the same.
    """
    train, test = finite_matrix("X_train", X_train, np.float32), finite_matrix("X_test", X_test, np.float32)
    check_width(X_train=train, X_test=test)
    labels = labels_vector("y_train", y_train, len(train))
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise EvaluationError(f"y_train holds the class '{classes[0]}' only; a classifier needs at least two")
    strength = train.shape[1] * len(classes) / 100 if cost is None else float(cost)
    layer = torch.nn.Linear(train.shape[1], len(classes))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), line_search_fn="strong_wolfe", max_iter=max_iter)
    features, goal = torch.from_numpy(train), torch.from_numpy(targets.ravel())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(features), goal)
        loss = loss + 0.5 * layer.weight.norm(p=2) / strength
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    # equal embeddings are ties of the AUROC: a product rounds a row differently at another place
    rows, row_of, _ = distinct_rows(test)
    with torch.no_grad():
        probability = torch.softmax(layer(torch.from_numpy(test[rows])), dim=1).numpy().astype(np.float64)
    return probe_result(probability[row_of], classes, y_test)


def probe_result(
    probability: NDArray[np.float64], classes: NDArray[Any], y_test: ArrayLike | None
) -> ProbeResult:
    """Turns probabilities, (M, classes), into predictions and, where the true labels are known, scores."""
    prediction = classes[probability.argmax(axis=1)]
    scores = ClassScores()
    if y_test is not None:
        truth = labels_vector("y_test", y_test)
        check_rows(X_test=probability, y_test=truth)
        scores = class_scores(truth, prediction, probability, classes)
    return ProbeResult(**vars(scores), prediction=prediction, probability=probability, classes=classes)
