"""k nearest neighbours in cosine distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import distinct_rows, finite_matrix, labels_vector
from .logistic import ProbeResult, check_width, probe_result

# similarities held at once, in numbers: 128 MB of float32
_BLOCK = 2**25


def knn_probe(
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike | None = None,
    *,
    k: int = 20,
) -> ProbeResult:
    """Classifies by the majority of the k nearest training embeddings in cosine distance.

    Of classes with equal votes the first in sorted order wins, as in scikit-learn; of equally near neighbours, the
    first in the train part.

    Args:
        X_train: Embeddings, (N, D); used as float32.
        y_train: Their labels, (N,).
        X_test: Embeddings to classify, (M, D).
        y_test: Their labels; None leaves the scores NaN.
        k: Neighbours.

    Returns:
        Labels, shares of the votes as probabilities, and scores.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, an embedding is zero, or there are fewer
            training embeddings than neighbours.
    """
    train, test = finite_matrix("X_train", X_train, np.float32), finite_matrix("X_test", X_test, np.float32)
    check_width(train, test)
    labels = labels_vector("y_train", y_train, len(train))
    if not 1 <= k <= len(train):
        raise EvaluationError(
            f"k = {k} neighbours of {len(train)} training embeddings: take from 1 to {len(train)}"
        )
    classes, targets = np.unique(labels, return_inverse=True)
    train, test = _unit("X_train", train), _unit("X_test", test)
    # equal embeddings are equally far: a product rounds a row differently at another place
    (train_rows, train_of, _), (test_rows, test_of, _) = distinct_rows(train), distinct_rows(test)
    references, queries = train[train_rows], test[test_rows]
    votes = np.zeros((len(queries), len(classes)))
    step = max(1, _BLOCK // len(train))
    for start in range(0, len(queries), step):
        distance = -(queries[start : start + step] @ references.T)[:, train_of]
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
        rows = np.repeat(np.arange(start, start + len(nearest)), k)
        np.add.at(votes, (rows, targets.ravel()[nearest].ravel()), 1)
    return probe_result(votes[test_of] / k, classes, y_test)


def _unit(name: str, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (norms == 0).any():
        raise EvaluationError(
            f"{name}: row {int((norms == 0).argmax())} is zero and has no direction; leave it out"
        )
    unit: NDArray[np.float32] = vectors / norms
    return unit
