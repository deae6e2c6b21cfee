"""What comes in as arrays → checked NumPy arrays, with errors that name the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import EvaluationError


def finite_matrix(name: str, values: ArrayLike, dtype: Any = None) -> NDArray[Any]:
    """Checks a matrix of numbers.

    Args:
        name: The argument's name, for messages.
        values: Rows × columns; a vector becomes one column.
        dtype: Wanted type; None keeps floating types and turns others into float64.

    Returns:
        The matrix, (rows, columns).

    Raises:
        EvaluationError: If it is empty, not a matrix, no numbers, or holds NaN or infinite values.
    """
    matrix = np.asarray(values)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or matrix.size == 0:
        raise EvaluationError(
            f"{name}: must be (rows, columns) with at least one of each, not {matrix.shape}"
        )
    if matrix.dtype.kind not in "fiub":
        raise EvaluationError(f"{name}: must hold numbers, not {matrix.dtype}")
    if dtype is None:
        dtype = matrix.dtype if matrix.dtype.kind == "f" else np.float64
    matrix = matrix.astype(dtype, copy=False)
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise EvaluationError(
            f"{name}: row {row}, column {column} is {matrix[row, column]}, in {int((~finite).any(axis=1).sum())} rows "
            "not all values are finite; leave these rows out or embed again"
        )
    return matrix


def check_rows(**arrays: Any) -> int:
    """Checks that arrays belong together.

    Args:
        **arrays: By name.

    Returns:
        The number of rows they share.

    Raises:
        EvaluationError: If they have different numbers of rows.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise EvaluationError(
            "different numbers of rows: " + ", ".join(f"{name} {length}" for name, length in lengths.items())
        )
    return next(iter(lengths.values()))


def labels_vector(name: str, values: ArrayLike, num_rows: int | None = None) -> NDArray[Any]:
    """Checks a vector of labels.

    Args:
        name: The argument's name, for messages.
        values: Labels: numbers or strings.
        num_rows: Length it must have; None takes any.

    Returns:
        The labels, (N,).

    Raises:
        EvaluationError: If it is no vector of that length, or a label is NaN.
    """
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (num_rows is not None and len(labels) != num_rows):
        wanted = "one label for each row" if num_rows is None else f"{num_rows} labels"
        raise EvaluationError(f"{name}: must be {wanted}, not an array of shape {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise EvaluationError(f"{name}: label {int(np.isnan(labels).argmax())} is NaN")
    return labels
