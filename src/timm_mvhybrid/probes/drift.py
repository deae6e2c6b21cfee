"""Features of the same items by two models → how far one has moved from the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import check_rows, finite_matrix


def mean_cosine(features: ArrayLike, reference: ArrayLike) -> float:
    """Averages the cosine between the features of each item by two models.

    Args:
        features: (N, D).
        reference: (N, D), row by row.

    Returns:
        -1 to 1; a row of zeros counts as 0.

    Raises:
        EvaluationError: If shapes differ or values are not finite.
    """
    first, second = _pair(features, reference)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("nd,nd->n", first, second)
    return float(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0).mean())


def linear_cka(features: ArrayLike, reference: ArrayLike) -> float:
    """Compares how two models arrange the same items, whatever the rotation and scale of their features.

    With centred X and Y it is ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), in Frobenius norms.
    Source: Kornblith et al. (arXiv 1905.00414), linear kernel.

    Args:
        features: X, (N, D).
        reference: Y, (N, E), row by row.

    Returns:
        0 to 1; 0 where the features of a model do not vary.

    Raises:
        EvaluationError: If the numbers of rows differ or values are not finite.
    """
    first = finite_matrix("features", features, np.float64)
    second = finite_matrix("reference", reference, np.float64)
    check_rows(features=first, reference=second)
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = float(np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second))
    return float(np.square(first.T @ second).sum() / scale) if scale > 0 else 0.0


def _pair(features: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first = finite_matrix("features", features, np.float64)
    second = finite_matrix("reference", reference, np.float64)
    check_rows(features=first, reference=second)
    return first, second
