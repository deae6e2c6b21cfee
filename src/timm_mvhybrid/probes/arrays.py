"""Array-likes → checked NumPy arrays, with errors that name the argument."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError


def finite_matrix(name: str, values: ArrayLike, dtype: Any = None) -> NDArray[Any]:
    """Checks a matrix of numbers.

    Args:
        name: The argument's name, for messages.
        values: Rows × columns; a vector becomes one column.
        dtype: Wanted type; None keeps floating types and turns others into float64.

    Returns:
        The matrix, (rows, columns).

    Raises:
        EvaluationError: If it is empty, not a matrix, not numeric, or holds NaN or infinite values.
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

    Raises:
        EvaluationError: If they have different numbers of rows.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise EvaluationError(
            "different numbers of rows: " + ", ".join(f"{name} {length}" for name, length in lengths.items())
        )
    return next(iter(lengths.values()))


def distinct_rows(
    matrix: NDArray[Any],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Finds rows that are equal, number by number.

    The order of the distinct rows follows from their content alone, so two matrices of the same rows in another order,
    or with all rows repeated, give the same distinct rows in the same order. What is computed from these is the same
    too, to the last bit, while products and sums over the matrix itself round differently at each place and length.

    Args:
        matrix: (rows, columns).

    Returns:
        A row of ``matrix`` for each distinct one, (distinct,); the distinct row of each row, (rows,); and how often each
        occurs, (distinct,).
    """
    # -0 and 0 are equal and differ in their bytes
    rows = np.ascontiguousarray(matrix + matrix.dtype.type(0))
    digests = np.frombuffer(b"".join(hashlib.sha256(row).digest() for row in rows), dtype="V32")
    _, first, inverse, counts = np.unique(digests, return_index=True, return_inverse=True, return_counts=True)
    return first, inverse.ravel(), counts


def labels_vector(name: str, values: ArrayLike, num_rows: int | None = None) -> NDArray[Any]:
    """Checks a vector of labels.

    Args:
        name: The argument's name, for messages.
        values: Labels: numbers or strings.
        num_rows: Length it must have; None takes any.

    Returns:
        The labels, (N,).

    Raises:
        EvaluationError: If it is not a vector of that length, a label is missing (None, NaN, pandas' NA), or some are
            numbers and others strings.
    """
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (num_rows is not None and len(labels) != num_rows):
        wanted = "one label for each row" if num_rows is None else f"{num_rows} labels"
        raise EvaluationError(f"{name}: must be {wanted}, not an array of shape {labels.shape}")
    if labels.dtype.kind == "f":
        missing = np.isnan(labels)
    elif labels.dtype.kind == "O" or not isinstance(values, np.ndarray):
        # a list of strings and NaN becomes an array of strings, one of which is 'nan'
        given = labels if labels.dtype.kind == "O" else np.asarray(values, dtype=object).reshape(-1)
        missing = np.array([_is_missing(label) for label in given], dtype=bool)
    else:
        return labels
    if missing.any():
        raise EvaluationError(f"{name}: label {int(missing.argmax())} is NaN or missing; leave its row out")
    if labels.dtype.kind == "O" and len({isinstance(label, str) for label in labels}) > 1:
        raise EvaluationError(f"{name}: some labels are strings and others are not; give one kind")
    return labels


def binary_vector(
    name: str, values: ArrayLike, num_rows: int | None = None, *, one: str, zero: str
) -> NDArray[np.bool_]:
    """Checks a vector of yes and no; other codings are refused, because most of them would count as yes throughout.

    Args:
        name: The argument's name, for messages.
        values: Booleans, or numbers that are 0 or 1.
        num_rows: Length it must have; None takes any.
        one: What 1 means, for messages.
        zero: What 0 means, for messages.

    Returns:
        (N,) bool.

    Raises:
        EvaluationError: If it is not a vector of that length or a value is neither: 1 and 2, -1, text, NaN.
    """
    vector = labels_vector(name, values, num_rows)
    if vector.dtype.kind == "O":
        known = np.array([_is_binary(value) for value in vector], dtype=bool)
    else:
        known = (vector == 0) | (vector == 1) if vector.dtype.kind in "biuf" else np.zeros(len(vector), bool)
    if not known.all():
        row = int(known.argmin())
        raise EvaluationError(
            f"{name}: row {row} is {vector.tolist()[row]!r}, which is neither 1 ({one}) nor 0 ({zero}); give booleans: "
            f"compare with the code that means {one}, and leave out rows where it is unknown"
        )
    return vector.astype(bool)


def _is_missing(value: Any) -> bool:
    # pandas' own markers by name, because they compare to nothing and pandas may not be installed
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float | np.floating) and bool(np.isnan(value)))
    )


def _is_binary(value: Any) -> bool:
    return isinstance(value, bool | np.bool_ | int | float | np.number) and value in (0, 1)
