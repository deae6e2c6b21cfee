"""Planned folds + embeddings of several models → a sheet of scores, and maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort
from ...probes.expression_metrics import METRICS, ExpressionMetrics, expression_metrics
from ...probes.ridge_folds import ridge_folds
from ...report import ScoreSheet
from ...runtime.errors import EvaluationError
from ...runtime.stage import OnStage, stage_reporter
from .options import ProbeOptions
from .plan import ProtocolPlan, nested_groups
from .spot_maps import ExpressionMap, genes_to_map, samples_to_map, spot_maps

_PER_GENE = ("pcc", "mse", "mae", "r2")


@dataclass(frozen=True, eq=False, kw_only=True)
class ProtocolOutcome:
    """What is known of a protocol beside the scores.

    Attributes:
        maps: The genes best predicted by the first model.
        solvers: Ridge solvers used.
        num_constant: How often a gene had no correlation in a fold.
    """

    maps: list[ExpressionMap]
    solvers: set[str]
    num_constant: int


def score_protocol(
    cohort: ExpressionCohort,
    plan: ProtocolPlan,
    embeddings: Mapping[str, NDArray[np.float32]],
    options: ProbeOptions,
    sheet: ScoreSheet,
    on_stage: OnStage = None,
) -> ProtocolOutcome:
    """Scores every model on the same folds and genes.

    Args:
        cohort: The cohort.
        plan: Folds, panels and targets.
        embeddings: Model's label → (N, D), in the order of the cohort's spots.
        options: Probe and scores.
        sheet: Where the scores go.
        on_stage: Called when a model is scored.

    Raises:
        EvaluationError: A fold cannot be fitted; the message names protocol and model.
    """
    columns, groups = plan.columns, nested_groups(cohort)
    maps: list[ExpressionMap] = []
    solvers: set[str] = set()
    num_constant = 0
    best: NDArray[np.int64] | None = None
    shown = samples_to_map(len(cohort.samples), options.num_map_samples)
    on_model = stage_reporter(plan.protocol, len(embeddings), on_stage)
    for label, features in embeddings.items():
        try:
            fitted = ridge_folds(
                features,
                plan.targets,
                plan.folds,
                options.preset,
                plan.num_components(options, features.shape[1]),
                alpha=options.alpha,
                solver=options.solver,
                columns=columns,
                groups=groups,
            )
        except EvaluationError as error:
            raise EvaluationError(f"protocol {plan.protocol}, model {label}: {error}") from error
        pcc = np.full((len(plan.folds), len(plan.genes)), np.nan)
        predicted = np.full(plan.targets.shape, np.nan)
        for row, (fold, chosen, one) in enumerate(zip(plan.folds, columns, fitted, strict=True)):
            found = expression_metrics(
                plan.targets[np.ix_(fold.test, chosen)], one.prediction, options.nan_policy
            )
            sheet.add(
                label,
                plan.protocol,
                fold.name,
                {name: getattr(found, name) for name in METRICS},
                num_train=len(fold.train),
                num_test=len(fold.test),
                units=_per_gene(found, plan.panels[row]),
                test_samples=[cohort.samples[index] for index in np.unique(cohort.sample_of[fold.test])],
                num_components=one.num_components,
                alpha=one.alpha,
                num_constant=found.num_constant,
            )
            solvers.add(one.solver)
            num_constant += found.num_constant
            pcc[row, chosen] = found.pcc_per_gene
            predicted[np.ix_(fold.test, chosen)] = one.prediction
        if best is None:
            # the same genes for all models, so that their maps can be compared
            best = genes_to_map(pcc, options.num_map_genes)
        maps += spot_maps(cohort, label, plan.protocol, plan.genes, plan.targets, predicted, best, shown)
        on_model(label)
    return ProtocolOutcome(maps=maps, solvers=solvers, num_constant=num_constant)


def _per_gene(found: ExpressionMetrics, genes: list[str]) -> dict[str, dict[str, float]]:
    return {
        name: dict(zip(genes, getattr(found, f"{name}_per_gene").tolist(), strict=True)) for name in _PER_GENE
    }
