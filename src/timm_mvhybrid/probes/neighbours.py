"""k nearest neighbours in cosine distance."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import check_choice, check_width, distinct_rows, finite_matrix, labels_vector
from .logistic import ProbeResult, probe_result

KnnWeights = Literal["uniform", "similarity"]
_TEMPERATURE = 0.07
# similarities held at once, in numbers: 128 MB of float32
_BLOCK = 2**25


def knn_probe(
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike | None = None,
    *,
    k: int = 20,
    weights: KnnWeights = "uniform",
) -> ProbeResult:
    """Classifies by the votes of the k nearest training embeddings in cosine distance.

    Of classes with equal votes the first in sorted order wins, as in scikit-learn; of equally near neighbours, the
    first in the train part.

    Source: the votes by similarity are DINO's, arXiv 2104.14294, appendix, after Wu et al., arXiv 1805.01978.

    Args:
        X_train: Embeddings, (N, D); used as float32.
        y_train: Their labels, (N,).
        X_test: Embeddings to classify, (M, D).
        y_test: Their labels; None leaves the scores NaN.
        k: Neighbours.
        weights: ``uniform``, one vote each; or ``similarity``, exp(s / 0.07) votes at the cosine similarity s.

    Returns:
        Labels, fractions of the votes as probabilities, and scores.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, an embedding is zero, there are fewer training
            embeddings than neighbours, or the weights are unknown.
    """
    train, test = finite_matrix("X_train", X_train, np.float32), finite_matrix("X_test", X_test, np.float32)
    check_width(X_train=train, X_test=test)
    labels = labels_vector("y_train", y_train, len(train))
    if not 1 <= k <= len(train):
        raise EvaluationError(
            f"k = {k} neighbours of {len(train)} training embeddings: take from 1 to {len(train)}"
        )
    classes, targets = np.unique(labels, return_inverse=True)
    train, test = _directions(train, "X_train"), _directions(test, "X_test")
    # equal embeddings are equally far: a product rounds a row differently at another place
    rows, row_of, _ = distinct_rows(test)
    votes = _votes(train, targets.ravel(), test[rows], k, weights)
    return probe_result(votes[row_of], classes, y_test)


def knn_leave_out(
    X: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    k: int = 20,
    weights: KnnWeights = "uniform",
) -> ProbeResult:
    """Classifies each embedding by its nearest among the others, as ``knn_probe`` does; the scores are left NaN.

    An embedding that is zero has no direction: all others are equally near to it. With groups such as patients, (N,),
    those of one's own group have no vote; without, only oneself has none. Where there are fewer than k others, all vote.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, there is one group only, or the weights are
            unknown.
    """
    features = finite_matrix("X", X, np.float32)
    labels = labels_vector("y", y, len(features))
    owners = np.arange(len(features)) if groups is None else labels_vector("groups", groups, len(features))
    names, owner_of = np.unique(owners, return_inverse=True)
    if len(names) < 2:
        raise EvaluationError(
            f"groups: all embeddings belong to '{names[0]}', so none may vote; give two or more"
        )
    classes, targets = np.unique(labels, return_inverse=True)
    directions = _directions(features)
    votes = _votes(
        directions, targets.ravel(), directions, min(k, len(features)), weights, owner_of=owner_of.ravel()
    )
    return probe_result(votes, classes, None)


def _votes(
    references: NDArray[np.float32],
    targets: NDArray[np.int64],
    queries: NDArray[np.float32],
    k: int,
    weights: KnnWeights,
    owner_of: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Counts the votes for each class, as fractions of all votes, (queries, classes).

    With owners the references are the queries, and those of the same owner have no vote.
    """
    check_choice("weights", weights, KnnWeights)
    rows, row_of, _ = distinct_rows(references)
    votes = np.zeros((len(queries), int(targets.max()) + 1))
    step = max(1, _BLOCK // len(references))
    for start in range(0, len(queries), step):
        similarity = (queries[start : start + step] @ references[rows].T)[:, row_of]
        if owner_of is not None:
            similarity[owner_of[start : start + step, None] == owner_of[None, :]] = -np.inf
        nearest = _largest(similarity, k)
        found = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        # without a vote is what is excluded, where fewer than k are left
        counted = np.exp((found - 1) / _TEMPERATURE) if weights == "similarity" else np.isfinite(found)
        voters = np.repeat(np.arange(start, start + len(nearest)), k)
        np.add.at(votes, (voters, targets[nearest].ravel()), counted.ravel())
    fractions: NDArray[np.float64] = votes / votes.sum(axis=1, keepdims=True)
    return fractions


def _largest(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Finds the k largest of each row, the first of equal ones; (rows, k), by position."""
    bound = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]
    above, at = values > bound, values == bound
    kept = above | (at & (np.cumsum(at, axis=1, dtype=np.int32) <= k - above.sum(axis=1, keepdims=True)))
    return np.nonzero(kept)[1].reshape(len(values), k)


def _directions(vectors: NDArray[Any], name: str | None = None) -> NDArray[np.float32]:
    """Scales rows to length 1; a row of zeros stays, or is refused where there is a name to refuse it by."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    zero = norms == 0
    if name is not None and zero.any():
        raise EvaluationError(f"{name}: row {int(zero.argmax())} is zero and has no direction; leave it out")
    directions: NDArray[np.float32] = vectors / np.where(zero, np.float32(1), norms)
    return directions
