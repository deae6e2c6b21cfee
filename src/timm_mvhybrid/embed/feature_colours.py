"""Features of many slides → one basis of colours: the first three principal components as red, green and blue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data import DataError
from ..runtime.extras import require
from .embedding_store import read_patches, read_rows

NUM_COMPONENTS = 3
_MOST_ROWS = 50_000
_ROWS_PER_BLOCK = 8
"""Rows that are read at a time: single ones would cost as much, because files are compressed and read in chunks."""
_ROWS_PER_FIT = 4096
_PERCENTILES = (1, 99)


@dataclass(frozen=True, eq=False, kw_only=True)
class ColourBasis:
    """What turns features into colours.

    Attributes:
        mean: Of the sample, (D,).
        components: Directions of largest variance, orthonormal rows, (3, D); zeros where there are fewer.
        low: Scores that are shown as 0, (3,): the 1st percentile of the sample.
        high: Scores that are shown as 255, (3,): the 99th percentile.
        explained: Fraction of the sample's variance along each component, (3,).
        num_rows: Size of the sample.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    explained: NDArray[np.float64]
    num_rows: int

    def colours(self, features: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Colours patches by their features, (N, D) → (N, 3) uint8; a component without spread is a middle grey."""
        scores = (features - self.mean) @ self.components.T
        spread = self.high - self.low
        shares = np.divide(scores - self.low, spread, out=np.full_like(scores, 0.5), where=spread > 0)
        found: NDArray[np.uint8] = np.rint(255 * shares.clip(0, 1)).astype(np.uint8)
        return found


def fit_colours(
    files: Sequence[Path],
    *,
    most_rows: int = _MOST_ROWS,
    on_file: Callable[[int, int], None] | None = None,
) -> ColourBasis:
    """Finds the principal components of a sample of all files; the same files give the same basis.

    Of each file it takes blocks of rows, evenly spread and as many for each, so that memory and reading are bounded
    however many slides and patches there are.

    Source: incremental PCA of Ross et al., International Journal of Computer Vision 77 (2008), by scikit-learn.

    Args:
        files: Embedding h5 files of one width, one or more.
        most_rows: Rows of the sample, unless there are more files.
        on_file: Called after each file with how many were read, and how many there are.

    Raises:
        DataError: All files are damaged; single ones that are have no part in the sample.
        MissingPackageError: scikit-learn is not installed.
    """
    decomposition = require("sklearn.decomposition")
    wanted = max(most_rows // len(files), 1)
    parts: list[NDArray[np.float32]] = []
    damaged: DataError | None = None
    for number, file in enumerate(files, start=1):
        try:
            parts.append(_sample(file, wanted))
        except DataError as error:
            damaged = error
        if on_file is not None:
            on_file(number, len(files))
    if damaged is not None and not parts:
        raise damaged
    sample = np.concatenate(parts).astype(np.float64)
    num = min(NUM_COMPONENTS, *sample.shape)
    fitted = decomposition.IncrementalPCA(n_components=num, batch_size=max(_ROWS_PER_FIT, num))
    # a last part with fewer rows than components cannot be fitted by itself
    edges = np.arange(0, max(len(sample) - num, 1), _ROWS_PER_FIT).tolist()
    # a single row has no variance, of which scikit-learn takes fractions
    with np.errstate(invalid="ignore"):
        for start, stop in zip(edges, [*edges[1:], len(sample)], strict=True):
            fitted.partial_fit(sample[start:stop])
    components = np.zeros((NUM_COMPONENTS, sample.shape[1]))
    components[:num] = fitted.components_
    scores = (sample - fitted.mean_) @ components.T
    low, high = np.percentile(scores, _PERCENTILES, axis=0)
    explained = np.zeros(NUM_COMPONENTS)
    # of features that are all the same there is no variance to explain
    explained[:num] = np.nan_to_num(fitted.explained_variance_ratio_)
    return ColourBasis(
        mean=fitted.mean_,
        components=components,
        low=low,
        high=high,
        explained=explained,
        num_rows=len(sample),
    )


def _sample(file: Path, wanted: int) -> NDArray[np.float32]:
    """Takes rows of a file in evenly spread blocks."""
    num = read_patches(file).num_patches
    if num <= wanted:
        return read_rows(file, 0, num)
    length = min(_ROWS_PER_BLOCK, wanted)
    starts = np.linspace(0, num - length, max(wanted // length, 1)).astype(int)
    return np.concatenate([read_rows(file, start, start + length) for start in starts.tolist()])
