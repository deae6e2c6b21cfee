"""Expression prediction: result → the paper's tables, folds and genes."""

from __future__ import annotations

import math
from collections import defaultdict

from .metrics import EXPRESSION_METRICS, metric, protocol_label
from .results import ExpressionResult, ExpressionScores
from .table import Cell, Table, mark_best, number_cell, text_cell


def expression_tables(result: ExpressionResult) -> list[Table]:
    """Makes the tables of an expression result.

    Args:
        result: The result.

    Returns:
        Scores in the paper's shape, folds, and genes.
    """
    return [_scores(result), _folds(result), _genes(result)]


def panel_name(result: ExpressionResult) -> str:
    """Names the gene panel as the paper does.

    Args:
        result: The result.

    Returns:
        Such as `HVG, 200 genes`.
    """
    name = result.panel.upper() if result.panel in ("hvg", "hmhvg") else result.panel
    return f"{name}, {result.panel_size} genes"


def gene_means(scores: ExpressionScores) -> dict[str, tuple[float, float, int]]:
    """Averages each gene's correlation over the folds that have one.

    Args:
        scores: One model under one protocol.

    Returns:
        gene → mean (NaN where no fold has one), standard deviation (ddof 0), number of folds.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for fold in scores.folds:
        for gene in fold.genes:
            found = values[gene.gene]
            if not math.isnan(gene.pcc):
                found.append(gene.pcc)
    means = {}
    for gene_name, found in values.items():
        mean = sum(found) / len(found) if found else math.nan
        spread = math.sqrt(sum((value - mean) ** 2 for value in found) / len(found)) if found else math.nan
        means[gene_name] = (mean, spread, len(found))
    return means


def _scores(result: ExpressionResult) -> Table:
    protocols = list(dict.fromkeys(scores.protocol for scores in result.scores))
    rows: list[tuple[Cell, ...]] = []
    ddofs = sorted({summary.ddof for scores in result.scores for summary in scores.summary})
    for protocol in protocols:
        group = [scores for scores in result.scores if scores.protocol == protocol]
        columns = []
        for name in EXPRESSION_METRICS:
            cells = []
            for scores in group:
                found = next((summary for summary in scores.summary if summary.metric == name), None)
                cells.append(
                    Cell(text="–")
                    if found is None
                    else number_cell(
                        found.mean, metric(name).digits, found.std if len(scores.folds) > 1 else None
                    )
                )
            columns.append(mark_best(cells, higher=metric(name).higher))
        for index, scores in enumerate(group):
            label = f"{protocol_label(protocol)}, {len(scores.folds)} folds"
            rows.append((text_cell(scores.model), text_cell(label), *(column[index] for column in columns)))
    models = list(dict.fromkeys(drop.model for drop in result.drops))
    columns = []
    for name in EXPRESSION_METRICS:
        drops = {drop.model: drop.percent for drop in result.drops if drop.metric == name}
        columns.append(mark_best([number_cell(drops.get(model), 1) for model in models], higher=False))
    for index, model in enumerate(models):
        rows.append((text_cell(model), text_cell("drop, %"), *(column[index] for column in columns)))
    spread = f" ± standard deviation (ddof {', '.join(map(str, ddofs))})" if ddofs else ""
    return Table(
        name="scores",
        caption=f"Expression of {result.dataset}: {panel_name(result)}, ridge preset {result.preset}; "
        f"mean{spread} over folds.",
        columns=("Model", "Folds", *(metric(name).label for name in EXPRESSION_METRICS)),
        rows=tuple(rows),
        num_text_columns=2,
    )


def _folds(result: ExpressionResult) -> Table:
    rows = []
    for scores in result.scores:
        for fold in scores.folds:
            rows.append(
                (
                    text_cell(scores.model),
                    text_cell(protocol_label(scores.protocol)),
                    text_cell(fold.name),
                    number_cell(fold.num_train, 0),
                    number_cell(fold.num_test, 0),
                    *(
                        number_cell(getattr(fold, name), metric(name).digits)
                        for name in (*EXPRESSION_METRICS, "r2")
                    ),
                    number_cell(fold.num_constant, 0),
                    number_cell(fold.num_components, 0),
                    Cell(text=f"{fold.alpha:.3g}", value=fold.alpha),
                )
            )
    return Table(
        name="folds",
        caption="Every fold: spots to fit on and to predict, means over the genes, genes without a correlation, "
        "principal components, and the ridge penalty.",
        columns=(
            "Model",
            "Folds",
            "Fold",
            "Train",
            "Test",
            *(metric(name).label for name in (*EXPRESSION_METRICS, "r2")),
            "No r",
            "PCs",
            "Alpha",
        ),
        rows=tuple(rows),
        num_text_columns=3,
    )


def _genes(result: ExpressionResult) -> Table:
    means = [gene_means(scores) for scores in result.scores]
    genes = list(dict.fromkeys(gene for found in means for gene in found))
    rows = []
    for gene in genes:
        cells = [number_cell(found[gene][0]) if gene in found else number_cell(None) for found in means]
        rows.append((text_cell(gene), *cells))
    return Table(
        name="genes",
        caption="Every gene: PCC, mean over the folds that have one.",
        columns=(
            "Gene",
            *(f"{scores.model}, {protocol_label(scores.protocol)}" for scores in result.scores),
        ),
        rows=tuple(rows),
        page_only=True,
    )
