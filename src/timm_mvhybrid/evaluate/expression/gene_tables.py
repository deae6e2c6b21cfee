"""Metrics of several folds → tables of folds × genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...probes.expression_metrics import ExpressionMetrics, NanPolicy


def gene_tables(
    metrics: Sequence[ExpressionMetrics], columns: Sequence[NDArray[np.int64]], num_genes: int
) -> dict[str, NDArray[np.float64]]:
    """Lays per-gene scores of all folds out in one table each.

    Args:
        metrics: Of each fold.
        columns: The fold's genes, as columns.
        num_genes: Genes of all folds.

    Returns:
        `pcc`, `mse`, `mae`, `r2` → (folds, genes), NaN where a fold's panel lacks the gene.
    """
    tables = {}
    for name in ("pcc", "mse", "mae", "r2"):
        table = np.full((len(metrics), num_genes), np.nan)
        for row, (metric, chosen) in enumerate(zip(metrics, columns, strict=True)):
            table[row, chosen] = getattr(metric, f"{name}_per_gene")
        tables[name] = table
    return tables


def resampled_values(
    table: NDArray[np.float64] | None,
    metric: str,
    nan_policy: NanPolicy,
    columns: Sequence[NDArray[np.int64]],
) -> NDArray[np.float64] | None:
    """Prepares per-gene values whose means over genes are the folds' values, for the bootstrap.

    Args:
        table: (folds, genes); None for a metric that is no mean over genes, such as the ten best.
        metric: Its name.
        nan_policy: What becomes of genes without a correlation.
        columns: The fold's genes, as columns.

    Returns:
        (folds, genes), or None.
    """
    if table is None or nan_policy != "zero" or metric not in ("pcc", "r2"):
        return table
    counted = table.copy()
    for row, chosen in enumerate(columns):
        counted[row, chosen] = np.nan_to_num(counted[row, chosen], nan=0.0)
    return counted
