"""Expression prediction: what leaving studies out costs, each gene's mean, and the MV_Hybrid paper's published numbers.

The latter are reference columns: never data of ours, and never a target of a test.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ...probes.expression_metrics import drop_percent
from ...report import Result

PAPER_METRICS = ("pcc", "pcc10", "mse", "mae")
"""Those of the paper's tables, in their order."""
_KEYS = {"pcc": "PCC", "pcc10": "PCC-10", "mse": "MSE", "mae": "MAE"}
_PROTOCOLS = {"random": "random10", "loso": "loso8"}


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


@dataclass(frozen=True, kw_only=True)
class Published:
    """One model of the paper.

    Attributes:
        label: Such as ``paper: MV_Hybrid``.
        values: (protocol, metric) → mean and standard deviation over folds.
        drops: metric → drop in percent from random folds to left-out studies, as reported.
        source: The table, and what it was measured on.
    """

    label: str
    values: dict[tuple[str, str], tuple[float, float]]
    drops: dict[str, float]
    source: str


def published(panel: str, protocol: str) -> list[Published]:
    """Looks up the paper's table for a setting.

    Args:
        panel: ``hvg`` or ``hmhvg``; others were not published.
        protocol: ``csv`` for HEST's benchmark, ``random`` or ``loso`` for the extended data.
    """
    tables: dict[str, Any] = json.loads(
        (files(__package__) / "paper_tables.json").read_text(encoding="utf-8")
    )
    columns = []
    if protocol == "csv" and panel == "hvg":
        table = tables["hest_benchmark"]
        source = f"MV_Hybrid paper ({tables['sources']['README']}), HEST benchmark: {table['protocol']}"
        for model, row in table["rows"].items():
            values = {("csv", name): _pair(row[key]) for name, key in _KEYS.items()}
            columns.append(Published(label=f"paper: {model}", values=values, drops={}, source=source))
    elif protocol in _PROTOCOLS and panel in ("hvg", "hmhvg"):
        data = tables["hest_extended_data"]
        source = (
            f"MV_Hybrid paper ({tables['sources']['README']}), {panel.upper()}: {data['n_genes']} genes, {data['n_samples']} samples of "
            f"{data['n_studies']} studies, {', '.join(data['oncotree'])}"
        )
        for model, row in tables[f"hest_extended_{panel.upper()}200"]["rows"].items():
            values = {
                (ours, name): _pair(row[theirs][key])
                for ours, theirs in _PROTOCOLS.items()
                for name, key in _KEYS.items()
            }
            drops = {name: float(row["drop_percent_reported"][key]) for name, key in _KEYS.items()}
            columns.append(Published(label=f"paper: {model}", values=values, drops=drops, source=source))
    return columns


def _pair(value: dict[str, float]) -> tuple[float, float]:
    return float(value["mean"]), float(value["std"])
