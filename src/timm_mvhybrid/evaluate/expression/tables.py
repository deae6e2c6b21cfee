"""Expression prediction: result → what leaving studies out costs, and the mean of each gene."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from ...probes.expression_metrics import drop_percent
from ...report import Result

PAPER_METRICS = ("pcc", "pcc10", "mse", "mae")
"""Those of the paper's tables, in their order."""


@dataclass(frozen=True, kw_only=True)
class ExpressionDrop:
    """What leaving studies out costs a model, against random folds.

    Attributes:
        model: The model's label.
        metric: ``pcc``, ``pcc10``, ``mse`` or ``mae``.
        random: Mean over the random folds.
        loso: Mean over the left-out studies.
        percent: As ``drop_percent``; None where ``random`` is not above 0.
    """

    model: str
    metric: str
    random: float
    loso: float
    percent: float | None


def find_drops(result: Result) -> list[ExpressionDrop]:
    """Compares random folds with left-out studies."""
    drops = []
    for model in result.models_of("random"):
        for metric in PAPER_METRICS:
            random, loso = (result.summary(model, protocol, metric) for protocol in ("random", "loso"))
            if random is None or loso is None:
                continue
            drops.append(
                ExpressionDrop(
                    model=model,
                    metric=metric,
                    random=random.mean,
                    loso=loso.mean,
                    percent=drop_percent(random.mean, loso.mean, metric),
                )
            )
    return drops


def panel_name(result: Result) -> str:
    """Names the gene panel as the paper does.

    Returns:
        Such as ``HVG, 200 genes``.
    """
    panel = result.settings["panel"]
    return f"{panel.upper() if panel in ('hvg', 'hmhvg') else panel}, {result.settings['panel_size']} genes"


def gene_means(result: Result, model: str, protocol: str) -> dict[str, tuple[float, float, int]]:
    """Averages each gene's correlation over the folds that have one.

    Returns:
        gene → mean (NaN where no fold has one), standard deviation (ddof 0), number of folds.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for genes in result.unit_values(model, protocol, "pcc").values():
        for gene, pcc in genes.items():
            found = values[gene]
            if not math.isnan(pcc):
                found.append(pcc)
    means = {}
    for gene, found in values.items():
        mean = sum(found) / len(found) if found else math.nan
        spread = math.sqrt(sum((value - mean) ** 2 for value in found) / len(found)) if found else math.nan
        means[gene] = (mean, spread, len(found))
    return means
