"""Counts of several samples → expression of the genes that vary most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cohorts.counts import Counts, read_counts
from ..data import DataError
from ..runtime.errors import PretrainError

_CONSTANT = 1e-9
"""Variance of log counts up to which a gene does not vary."""


def read_expression(path: Path, layer: str | None = None) -> Counts:
    """Reads the counts of one sample.

    Args:
        path: h5ad or CSV, see `read_counts`.
        layer: h5ad: the layer that holds the counts, or `raw`; None takes X.

    Returns:
        The counts.

    Raises:
        PretrainError: A package is missing, the file is unreadable, has no counts there or values that are not counts,
            or names a spot or gene twice.
    """
    try:
        return read_counts(path, layer, option="--monitor.probe-counts-layer")
    except DataError as error:
        raise PretrainError(str(error)) from error


def most_variable_genes(
    tables: Sequence[Counts], num_genes: int
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Chooses the genes whose expression varies most over all spots.

    Args:
        tables: Counts of each sample.
        num_genes: Genes to choose; fewer where fewer vary.

    Returns:
        Their names, by falling variance, and log(1 + counts scaled to the sample's median total), (spots, genes).

    Raises:
        PretrainError: The samples share no gene that varies.
    """
    shared = sorted(set(tables[0].genes).intersection(*(table.genes for table in tables[1:])))
    if not shared:
        raise PretrainError(
            f"{tables[0].path} and {tables[-1].path} share no gene; name genes in the same way in every sample"
        )
    logs = [_log_counts(table, shared) for table in tables]
    # sparse all the way: a sample of all genes would be hundreds of megabytes otherwise
    num_spots = sum(log.shape[0] for log in logs)
    mean = np.sum([_column_sums(log, log.data) for log in logs], axis=0) / num_spots
    variance = np.sum([_squared_deviations(log, mean) for log in logs], axis=0) / num_spots
    order = np.argsort(-variance, kind="stable")[:num_genes]
    chosen = order[variance[order] > _CONSTANT]
    if not len(chosen):
        raise PretrainError(f"{tables[0].path}: no gene varies between the spots")
    expression = np.concatenate([log[:, chosen].toarray() for log in logs]).astype(np.float32)
    return tuple(shared[index] for index in chosen), expression


def _log_counts(table: Counts, genes: Sequence[str]) -> Any:
    """log(1 + counts scaled to the sample's median total), (spots, genes) CSR float64."""
    position = {gene: index for index, gene in enumerate(table.genes)}
    totals = np.asarray(table.values.sum(axis=1)).ravel()
    positive = totals[totals > 0]
    # a spot without counts stays 0, whatever it is multiplied by
    scale = (np.median(positive) if len(positive) else 0.0) / np.where(totals > 0, totals, 1)
    columns = table.values[:, [position[gene] for gene in genes]]
    return columns.multiply(scale[:, None]).tocsr().log1p()


def _column_sums(sparse: Any, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adds one value for each stored entry of a CSR matrix up by its column, in float64."""
    sums = np.bincount(sparse.indices, weights=values, minlength=sparse.shape[1])
    return sums.astype(np.float64, copy=False)


def _squared_deviations(log: Any, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adds (x − mean)² up over the spots: squares of small differences, where mean squares less squared means cancel."""
    num_zeros = log.shape[0] - np.bincount(log.indices, minlength=log.shape[1])
    squared: NDArray[np.float64] = num_zeros * np.square(mean)
    return squared + _column_sums(log, np.square(log.data - mean[log.indices]))
