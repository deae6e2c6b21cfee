"""Expression prediction: result → the paper's tables, genes, and what leaving studies out costs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from ...probes.expression_metrics import drop_percent
from ...report import Result
from ...report.presentation import Presentation, scores_table
from ...report.table import Table, mark_best, number_cell, text_cell

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
        percent: As `drop_percent`; None where ``random`` is not above 0.
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


def paper_table(result: Result, looks: Presentation) -> Table:
    """Makes the table of the paper's shape: metrics under every protocol, then the drops."""
    drops = find_drops(result)
    models = list(dict.fromkeys(drop.model for drop in drops))
    columns = []
    for name in PAPER_METRICS:
        percents = {drop.model: drop.percent for drop in drops if drop.metric == name}
        columns.append(mark_best([number_cell(percents.get(model), 1) for model in models], higher=False))
    rows = [
        (text_cell(model), text_cell("drop, %"), *(column[index] for column in columns))
        for index, model in enumerate(models)
    ]
    ddofs = sorted({summary.ddof for summary in result.summaries})
    spread = f" ± standard deviation (ddof {', '.join(map(str, ddofs))})" if ddofs else ""
    caption = (
        f"Expression of {result.dataset}: {panel_name(result)}, ridge preset {result.settings['preset']}; "
        f"mean{spread} over folds."
    )
    return scores_table(result, looks, PAPER_METRICS, caption, rows)


def gene_table(result: Result, looks: Presentation) -> Table:
    """Makes the table of all genes."""
    settings = [(model, protocol) for protocol in result.protocols for model in result.models_of(protocol)]
    means = [gene_means(result, model, protocol) for model, protocol in settings]
    genes = list(dict.fromkeys(gene for found in means for gene in found))
    return Table(
        name="genes",
        caption="Every gene: PCC, mean over the folds that have one.",
        columns=("Gene", *(f"{model}, {looks.protocol(protocol)}" for model, protocol in settings)),
        rows=tuple(
            (text_cell(gene), *(number_cell(found[gene][0] if gene in found else None) for found in means))
            for gene in genes
        ),
        page_only=True,
    )
