"""Patch retrieval: one prototype for each class, queries ranked by their distance to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import check_width, finite_matrix, labels_vector
from .column_moments import ColumnMoments


@dataclass(frozen=True, eq=False, kw_only=True)
class PrototypeRetrieval:
    """Queries ranked by prototypes.

    Attributes:
        accuracy: Fraction of queries whose nearest prototype is their class's.
        prediction: Label of the nearest prototype, (M,).
        precision: k → (classes,), fraction of the class among the k queries nearest to its prototype.
        ranking: Query numbers by rising distance to each prototype, (classes, largest k).
        classes: The labels, sorted.
        num_support: Support embeddings of each class.
        num_queries: Queries of each class.
    """

    accuracy: float
    prediction: NDArray[Any]
    precision: dict[int, NDArray[np.float64]]
    ranking: NDArray[np.int64]
    classes: NDArray[Any]
    num_support: NDArray[np.int64]
    num_queries: NDArray[np.int64]


def prototype_retrieval(
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike,
    k: Sequence[int] | int = (1, 5, 10, 20),
) -> PrototypeRetrieval:
    """Makes a prototype of each class from support embeddings and ranks queries by their distance to it.

    The support's mean is subtracted from both sides, embeddings are scaled to length 1, prototypes are class means
    (not scaled again), and distances are L2.

    Source: UNI's ProtoNet evaluation.

    Args:
        X_train: Support embeddings, (N, D); used as float32.
        y_train: Their labels, (N,).
        X_test: Queries, (M, D).
        y_test: Their labels, (M,).
        k: Numbers of nearest queries at which precision is computed; those above M are left out.

    Returns:
        Precision, nearest-prototype accuracy and the ranking.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, the support has one class only, or no k is
            from 1 to M.
    """
    support = finite_matrix("X_train", X_train, np.float32)
    queries = finite_matrix("X_test", X_test, np.float32)
    check_width(X_train=support, X_test=queries)
    labels = labels_vector("y_train", y_train, len(support))
    truth = labels_vector("y_test", y_test, len(queries))
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise EvaluationError(f"y_train holds the class '{classes[0]}' only; prototypes need at least two")
    wanted = sorted({int(number) for number in np.atleast_1d(k)})
    depths = [number for number in wanted if 1 <= number <= len(queries)]
    if not depths:
        raise EvaluationError(f"`k` is {wanted}; none is from 1 to the number of queries, {len(queries)}")
    mean = ColumnMoments.of([support]).mean.astype(np.float32)
    support, queries = _scaled(support - mean), _scaled(queries - mean)
    members = targets.ravel()[None, :] == np.arange(len(classes))[:, None]
    prototypes = np.stack([support[rows].mean(axis=0, dtype=np.float64) for rows in members]).astype(
        np.float32
    )
    # differences, not dot products: near distances keep their digits in float32
    distance = np.stack([np.linalg.norm(queries - prototype, axis=1) for prototype in prototypes])
    ranking = np.argsort(distance, axis=1, kind="stable")[:, : depths[-1]]
    hits = truth[ranking] == classes[:, None]
    prediction = classes[distance.argmin(axis=0)]
    return PrototypeRetrieval(
        accuracy=float(np.mean(prediction == truth)),
        prediction=prediction,
        precision={depth: hits[:, :depth].mean(axis=1) for depth in depths},
        ranking=ranking,
        classes=classes,
        num_support=members.sum(axis=1),
        num_queries=np.array([(truth == name).sum() for name in classes]),
    )


def _scaled(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # an embedding at the support's mean stays at the origin, equally far from all directions
    scaled: NDArray[np.float32] = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled
