"""Cohort + embeddings of several models → scores, drops, paired comparisons and maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort
from ...probes.expression_metrics import (
    METRICS,
    ExpressionMetrics,
    NanPolicy,
    drop_percent,
    expression_metrics,
)
from ...probes.resampling import NUM_RESAMPLES, PairedComparison, compare_paired, summarise
from ...probes.ridge import RidgePreset
from ...probes.ridge_folds import RidgeSolver, ridge_folds
from ...probes.splits import Fold
from ...report.results import ExpressionDrop, ExpressionFold, ExpressionMap, ExpressionScores, GeneScore
from ...runtime.errors import EvaluationError
from ...runtime.stage import OnStage, stage_reporter
from .gene_tables import gene_tables, resampled_values
from .protocols import PanelChoice, Protocol, choose_panels, make_folds
from .spot_maps import genes_to_map, samples_to_map, spot_maps


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How expression is predicted and scored.

    Args:
        preset: Ridge preset.
        num_components: Principal components; None without PCA.
        alpha: Penalty; None takes the recipe's, `nested` chooses by cross-validation within the train part.
        solver: As in `ridge_folds`.
        nan_policy: What becomes of genes without a correlation.
        num_folds: Random folds.
        ddof: Delta degrees of freedom of deviations over folds.
        num_resamples: Bootstrap resamples.
        seed: Seed of random folds and bootstrap.
        num_map_genes: Genes shown as maps.
        num_map_samples: Samples shown as maps.
    """

    preset: RidgePreset = "hest"
    num_components: int | None = 256
    alpha: float | Literal["nested"] | None = None
    solver: RidgeSolver = "auto"
    nan_policy: NanPolicy = "omit"
    num_folds: int = 10
    ddof: int = 0
    num_resamples: int = NUM_RESAMPLES
    seed: int = 0
    num_map_genes: int = 4
    num_map_samples: int = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class ProtocolOutcome:
    """All models under one protocol.

    Args:
        scores: One for each model.
        comparisons: Of the later models with the first.
        maps: The genes best predicted by the first model.
        solvers: Ridge solvers used.
    """

    scores: list[ExpressionScores]
    comparisons: list[PairedComparison]
    maps: list[ExpressionMap]
    solvers: set[str]


def score_protocol(
    cohort: ExpressionCohort,
    embeddings: Mapping[str, NDArray[np.float32]],
    protocol: Protocol,
    panel: PanelChoice,
    options: ProbeOptions,
    on_stage: OnStage = None,
) -> ProtocolOutcome:
    """Runs one protocol for every model, on the same folds and genes.

    Args:
        cohort: The cohort.
        embeddings: Model's label → (N, D), in the order of the cohort's spots.
        protocol: The protocol.
        panel: The genes.
        options: Probe and scores.
        on_stage: Called when a model is scored.

    Returns:
        Scores, comparisons and maps.

    Raises:
        EvaluationError: If a fold cannot be fitted; the message names it.
    """
    folds = make_folds(cohort, protocol, options.num_folds, options.seed)
    try:
        panels = choose_panels(cohort, folds, panel)
    except EvaluationError as error:
        raise EvaluationError(f"protocol {protocol}: {error}") from error
    genes = sorted(set().union(*panels))
    column_of = {gene: index for index, gene in enumerate(genes)}
    columns = [np.array([column_of[gene] for gene in names]) for names in panels]
    targets = cohort.log_counts(genes)
    groups = cohort.label_of_spots(cohort.studies or {sample: sample for sample in cohort.samples})
    scores: list[ExpressionScores] = []
    maps: list[ExpressionMap] = []
    solvers: set[str] = set()
    tables: dict[str, dict[str, NDArray[np.float64]]] = {}
    on_model = stage_reporter(protocol, len(embeddings), on_stage)
    for label, features in embeddings.items():
        try:
            fitted = ridge_folds(
                features,
                targets,
                folds,
                options.preset,
                options.num_components,
                alpha=options.alpha,
                solver=options.solver,
                columns=columns,
                groups=groups,
            )
        except EvaluationError as error:
            raise EvaluationError(f"protocol {protocol}, model {label}: {error}") from error
        solvers |= {fold.solver for fold in fitted}
        metrics = [
            expression_metrics(targets[np.ix_(fold.test, chosen)], one.prediction, options.nan_policy)
            for fold, chosen, one in zip(folds, columns, fitted, strict=True)
        ]
        tables[label] = gene_tables(metrics, columns, len(genes))
        records = tuple(
            _fold_record(cohort, fold, one.num_components, one.alpha, names, metric)
            for fold, one, names, metric in zip(folds, fitted, panels, metrics, strict=True)
        )
        scores.append(
            ExpressionScores(
                model=label,
                protocol=protocol,
                folds=records,
                summary=tuple(
                    summarise(
                        metric,
                        [getattr(record, metric) for record in records],
                        gene_values=resampled_values(
                            tables[label].get(metric), metric, options.nan_policy, columns
                        ),
                        ddof=options.ddof,
                        seed=options.seed,
                        num_resamples=options.num_resamples,
                    )
                    for metric in METRICS
                ),
            )
        )
        predicted = np.full(targets.shape, np.nan)
        for fold, chosen, one in zip(folds, columns, fitted, strict=True):
            predicted[np.ix_(fold.test, chosen)] = one.prediction
        # the same genes for all models, so that their maps can be compared
        best = genes_to_map(next(iter(tables.values()))["pcc"], options.num_map_genes)
        shown = samples_to_map(len(cohort.samples), options.num_map_samples)
        maps += spot_maps(cohort, label, protocol, genes, targets, predicted, best, shown)
        on_model(label)
    return ProtocolOutcome(
        scores=scores, comparisons=_compare(scores, tables, protocol, options), maps=maps, solvers=solvers
    )


def compute_drops(scores: Sequence[ExpressionScores]) -> list[ExpressionDrop]:
    """Compares random folds with left-out studies.

    Args:
        scores: Of all models and protocols.

    Returns:
        One for each model that has both, and metric.
    """
    means = {
        (score.model, score.protocol): {summary.metric: summary.mean for summary in score.summary}
        for score in scores
    }
    drops = []
    for (model, protocol), random in means.items():
        loso = means.get((model, "loso"))
        if protocol != "random" or loso is None:
            continue
        drops += [
            ExpressionDrop(
                model=model,
                metric=metric,
                random=random[metric],
                loso=loso[metric],
                percent=drop_percent(random[metric], loso[metric], metric),
            )
            for metric in ("pcc", "pcc10", "mse", "mae")
        ]
    return drops


def _fold_record(
    cohort: ExpressionCohort,
    fold: Fold,
    num_components: int | None,
    alpha: float,
    names: Sequence[str],
    metrics: ExpressionMetrics,
) -> ExpressionFold:
    per_gene = zip(
        names,
        metrics.pcc_per_gene.tolist(),
        metrics.mse_per_gene.tolist(),
        metrics.mae_per_gene.tolist(),
        metrics.r2_per_gene.tolist(),
        strict=True,
    )
    return ExpressionFold(
        name=fold.name,
        num_train=len(fold.train),
        num_test=len(fold.test),
        test_samples=tuple(cohort.samples[index] for index in np.unique(cohort.sample_of[fold.test])),
        num_components=num_components,
        alpha=alpha,
        pcc=metrics.pcc,
        pcc10=metrics.pcc10,
        mse=metrics.mse,
        mae=metrics.mae,
        r2=metrics.r2,
        num_constant=metrics.num_constant,
        genes=tuple(
            GeneScore(gene=gene, pcc=pcc, mse=mse, mae=mae, r2=r2) for gene, pcc, mse, mae, r2 in per_gene
        ),
    )


def _compare(
    scores: Sequence[ExpressionScores],
    tables: Mapping[str, Mapping[str, NDArray[np.float64]]],
    protocol: str,
    options: ProbeOptions,
) -> list[PairedComparison]:
    baseline = scores[0]
    comparisons = []
    for score in scores[1:]:
        for metric in ("pcc", "pcc10", "mse", "mae"):
            if metric == "pcc10":
                pair = [np.array([fold.pcc10 for fold in one.folds]) for one in (score, baseline)]
            else:
                pair = [tables[one.model][metric] for one in (score, baseline)]
            comparisons.append(
                compare_paired(
                    pair[0],
                    pair[1],
                    metric=metric,
                    protocol=protocol,
                    model=score.model,
                    baseline=baseline.model,
                    seed=options.seed,
                    num_resamples=options.num_resamples,
                )
            )
    return comparisons
