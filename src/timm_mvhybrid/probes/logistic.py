"""Linear probe: logistic regression by UNI's recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import check_rows, distinct_rows, finite_matrix, labels_vector
from .scores import ClassScores, class_scores


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

    Returns:
        Labels, probabilities and scores.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, or all training labels are the same.
    """
    train, test = finite_matrix("X_train", X_train, np.float32), finite_matrix("X_test", X_test, np.float32)
    check_width(train, test)
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


def check_width(train: NDArray[Any], test: NDArray[Any]) -> None:
    """Checks that train and test features have the same width.

    Args:
        train: (N, D).
        test: (M, D).

    Raises:
        EvaluationError: If they differ.
    """
    if train.shape[1] != test.shape[1]:
        raise EvaluationError(
            f"X_train has {train.shape[1]} features, X_test {test.shape[1]}; they must agree"
        )


def probe_result(
    probability: NDArray[np.float64], classes: NDArray[Any], y_test: ArrayLike | None
) -> ProbeResult:
    """Turns probabilities into predictions and scores.

    Args:
        probability: (M, classes).
        classes: The labels of the columns.
        y_test: True labels, or None.
    """
    prediction = classes[probability.argmax(axis=1)]
    scores = ClassScores()
    if y_test is not None:
        truth = labels_vector("y_test", y_test)
        check_rows(X_test=probability, y_test=truth)
        scores = class_scores(truth, prediction, probability, classes)
    return ProbeResult(**vars(scores), prediction=prediction, probability=probability, classes=classes)
