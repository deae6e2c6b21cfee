"""Embeddings of the same items by two encoders → whether each item finds its own counterpart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import check_rows, finite_matrix

_CHUNK_ROWS = 1024
_EQUAL = 1e-6
"""Cosines of float32 embeddings that differ by less are equal."""


def counterpart_ranks(queries: ArrayLike, keys: ArrayLike) -> NDArray[np.int64]:
    """Ranks the own key of each query among all keys, by cosine.

    Keys that are as near as the own one count as nearer, so that a constant embedding finds nothing.

    Args:
        queries: (N, D).
        keys: (N, D), row by row.

    Returns:
        Number of other keys that are at least as near, (N,): 0 where the own key is the nearest.

    Raises:
        EvaluationError: If shapes differ, values are not finite, or there are no rows.
    """
    q, k = (
        _unit_rows(finite_matrix(name, x, np.float32)) for name, x in (("queries", queries), ("keys", keys))
    )
    check_rows(queries=q, keys=k)
    own = np.einsum("nd,nd->n", q, k)[:, None]
    # in chunks, because there are many pairs
    ranks = [
        (q[start : start + _CHUNK_ROWS] @ k.T >= own[start : start + _CHUNK_ROWS] - _EQUAL).sum(axis=1) - 1
        for start in range(0, len(q), _CHUNK_ROWS)
    ]
    return np.concatenate(ranks)


def _unit_rows(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
