"""What callers of a predictor give → checked matrices; messages are worded as scikit-learn's users know them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..probes.arrays import finite_matrix
from .errors import PredictorError


def feature_matrix(features: ArrayLike) -> NDArray[np.float32]:
    """Checks features, (patches, D).

    Raises:
        PredictorError: They are a single vector, which could be one patch or one feature; sparse, complex, not numbers,
            empty or not finite.
    """
    matrix = _dense("features", features)
    if matrix.ndim != 2:
        raise PredictorError(
            f"features: must be (patches, features), not of shape {matrix.shape}; Reshape your data, a single patch with "
            ".reshape(1, -1)"
        )
    for axis, noun in enumerate(("sample", "feature")):
        if matrix.shape[axis] == 0:
            raise PredictorError(
                f"features: 0 {noun}(s) (shape={matrix.shape}) while a minimum of 1 is required; embed again"
            )
    with np.errstate(over="ignore"):
        # beyond float32 is infinite, and refused as such
        return _finite("features", matrix, np.float32)


def target_matrix(expression: ArrayLike) -> NDArray[np.float64]:
    """Checks targets, (patches, genes) or (patches,).

    Raises:
        PredictorError: They are sparse, complex, not numbers, empty or not finite.
    """
    return _finite("expression", _dense("expression", expression), np.float64)


def _dense(name: str, values: ArrayLike) -> NDArray[Any]:
    if hasattr(values, "toarray"):
        raise PredictorError(f"{name}: sparse input is not supported; give .toarray()")
    matrix = np.asarray(values)
    if matrix.dtype.kind == "c":
        raise PredictorError(f"{name}: Complex data not supported; give real numbers")
    if matrix.dtype.kind == "O":
        try:
            matrix = matrix.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: must hold numbers; argument must be a string or a number") from error
    return matrix


def _finite(name: str, matrix: NDArray[Any], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    if matrix.dtype.kind == "f" and not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix.reshape(len(matrix), -1)).all(axis=1))[0])
        raise PredictorError(f"{name}: row {row} holds NaN or infinity; leave such rows out, or embed again")
    return finite_matrix(name, matrix, dtype)
