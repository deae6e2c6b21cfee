"""Rows + labels → train and test parts: random, by study, by patient, by place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import finite_matrix, labels_vector


@dataclass(frozen=True, eq=False)
class Fold:
    """Row numbers of a train and a test part; unpacks as ``train, test = fold``.

    Attributes:
        train: Rows to fit on, ascending.
        test: Rows to predict, ascending; none of them in ``train``.
        name: The fold's number, or the study or patient left out.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    name: str = ""

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """Yields the train part and the test part."""
        yield self.train
        yield self.test


def random_folds(num_rows: int | ArrayLike, num_folds: int = 10, seed: int = 0) -> list[Fold]:
    """Deals rows at random into folds whose sizes differ by one at most.

    Neighbouring spots fall into train and test parts alike, so the scores say nothing about other slides.

    Args:
        num_rows: Number of rows, or anything with a length: one item for each row.
        num_folds: Number of folds.
        seed: Seed of ``numpy.random.default_rng``.

    Returns:
        The folds; each row is tested once.

    Raises:
        EvaluationError: If there are fewer rows than folds, or fewer than two folds.
    """
    length = int(num_rows) if isinstance(num_rows, int | np.integer) else len(np.asarray(num_rows))
    if num_folds < 2 or length < num_folds:
        raise EvaluationError(f"{num_folds} folds of {length} rows: take from 2 to {max(length, 2)} folds")
    order = np.random.default_rng(seed).permutation(length)
    fold_of = np.empty(length, dtype=np.int64)
    fold_of[order] = np.arange(length) % num_folds
    return _folds(fold_of, [str(index) for index in range(num_folds)])


def study_folds(studies: ArrayLike) -> list[Fold]:
    """Leaves one study out at a time.

    A study may consist of a single sample; its fold then tests that sample alone.

    Args:
        studies: The study of each row, as the caller knows it; never guessed from sample names.

    Returns:
        One fold for each study, sorted by name.

    Raises:
        EvaluationError: If there is one study only.
    """
    return leave_one_out("study", "studies", labels_vector("studies", studies))


def patient_folds(
    patients: ArrayLike, num_folds: int | None = None, seed: int = 0, labels: ArrayLike | None = None
) -> list[Fold]:
    """Splits rows so that no patient is in train and test parts at once.

    Args:
        patients: The patient of each row.
        num_folds: Number of folds; None leaves one patient out at a time.
        seed: Seed of the order in which patients are dealt out.
        labels: A class for each row, to be spread evenly over the folds; a patient counts as its first row's class.

    Returns:
        The folds; each row is tested once.

    Raises:
        EvaluationError: If there are fewer patients than folds, or fewer than two of either.
    """
    names = labels_vector("patients", patients)
    if num_folds is None:
        return leave_one_out("patient", "patients", names)
    unique, first, row_patient = np.unique(names, return_index=True, return_inverse=True)
    if num_folds < 2 or len(unique) < num_folds:
        raise EvaluationError(
            f"{num_folds} folds of {len(unique)} patients: take from 2 to {max(len(unique), 2)} folds"
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    if labels is not None:
        classes = labels_vector("labels", labels, len(names))[first]
        # dealt out class by class, each class from where the one before stopped, so that sizes stay even
        order = order[np.argsort(classes[order], kind="stable")]
    fold_of_patient = np.empty(len(unique), dtype=np.int64)
    fold_of_patient[order] = np.arange(len(unique)) % num_folds
    return _folds(fold_of_patient[row_patient], [str(index) for index in range(num_folds)])


def stripe_folds(coords: ArrayLike, num_folds: int = 4) -> list[Fold]:
    """Cuts one slide into stripes across its longer side, with equally many spots each.

    Spots held out at random would have neighbours among those fitted. Coordinates, (N, 2), may be in any unit.

    Raises:
        EvaluationError: If all spots are at one place, or a stripe would have fewer than two of them.
    """
    places = finite_matrix("coords", coords, np.float64)
    extent = np.ptp(places, axis=0)
    if not extent.any():
        raise EvaluationError("coords: all spots are at one place, so no part of the slide can be held out")
    if num_folds < 2 or len(places) < 2 * num_folds:
        raise EvaluationError(
            f"{num_folds} stripes of {len(places)} spots: take two stripes or more, of two spots or more"
        )
    order = places[:, int(extent.argmax())].argsort(kind="stable")
    fold_of = np.empty(len(places), dtype=np.int64)
    fold_of[order] = np.arange(len(places)) * num_folds // len(places)
    return _folds(fold_of, [str(index) for index in range(num_folds)])


def leave_one_out(noun: str, nouns: str, names: NDArray[np.generic]) -> list[Fold]:
    """Leaves the rows of one name at a time out, in the order of the names, which are checked already.

    Raises:
        EvaluationError: If there is one name only.
    """
    unique, inverse = np.unique(names, return_inverse=True)
    if len(unique) < 2:
        have = f"'{unique[0]}' only" if len(unique) else "none"
        raise EvaluationError(f"leaving one {noun} out takes at least two {nouns}, and there is {have}")
    return _folds(inverse, [str(name) for name in unique])


def _folds(fold_of: NDArray[np.int64], names: list[str]) -> list[Fold]:
    return [
        Fold(np.flatnonzero(fold_of != index), np.flatnonzero(fold_of == index), name)
        for index, name in enumerate(names)
    ]
