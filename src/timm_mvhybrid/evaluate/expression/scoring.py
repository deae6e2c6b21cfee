"""Planned folds + embeddings of several models → a sheet of scores, and maps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort
from ...embed.baselines import MEAN
from ...probes.expression_metrics import METRICS, ExpressionMetrics, expression_metrics
from ...probes.ridge_folds import ridge_folds
from ...report import ScoreSheet
from ...runtime.stage import OnStage, stage_reporter
from ..arguments import errors_in
from .groups import score_groups
from .maps import ExpressionMap, genes_to_map, samples_to_map, spot_maps
from .options import ProbeOptions
from .plan import ProtocolPlan

_PER_GENE = ("pcc", "mse", "mae", "r2")


def score_protocol(
    cohort: ExpressionCohort,
    protocol: ProtocolPlan,
    features: Mapping[str, NDArray[np.float32]],
    options: ProbeOptions,
    sheet: ScoreSheet,
    groups: Mapping[str, str] | None = None,
    on_stage: OnStage = None,
) -> tuple[list[ExpressionMap], set[str]]:
    """Scores every model's features, (N, D) in the order of the cohort's spots, on the same folds and genes.

    With ``groups``, gene → group, the correlation of each group's genes is a metric of its own.

    Returns:
        Maps of the genes best predicted by the first model, and the ridge solvers used.

    Raises:
        EvaluationError: A fold cannot be fitted; the message names protocol and model.
    """
    columns = protocol.columns
    maps: list[ExpressionMap] = []
    solvers: set[str] = set()
    best: NDArray[np.int64] | None = None
    shown = samples_to_map(len(cohort.samples), options.num_map_samples)
    on_model = stage_reporter(protocol.protocol, len(features), on_stage)
    for label, X in features.items():
        with errors_in(f"protocol {protocol.protocol}, model {label}"):
            fitted = ridge_folds(
                X,
                protocol.targets,
                protocol.folds,
                options.preset,
                protocol.num_components[label],
                # without penalty and projection a column of ones is the mean, with HEST's recipe, too, which has no intercept
                alpha=0.0 if label == MEAN else options.alpha,
                solver=options.solver,
                columns=columns,
                groups=cohort.study_of,
            )
        pcc = np.full((len(protocol.folds), len(protocol.genes)), np.nan)
        predicted = np.full(protocol.targets.shape, np.nan)
        for row, (fold, chosen, one) in enumerate(zip(protocol.folds, columns, fitted, strict=True)):
            found = expression_metrics(
                protocol.targets[np.ix_(fold.test, chosen)], one.prediction, options.nan_policy
            )
            means, by_group = score_groups(found, protocol.panels[row], groups or {})
            sheet.add(
                label,
                protocol.protocol,
                fold.name,
                {**{name: getattr(found, name) for name in METRICS}, **means},
                num_train=len(fold.train),
                num_test=len(fold.test),
                units={**_per_gene(found, protocol.panels[row]), **by_group},
                test_samples=[cohort.samples[index] for index in np.unique(cohort.sample_of[fold.test])],
                num_components=one.num_components,
                alpha=one.alpha,
                num_constant=found.num_constant,
            )
            solvers.add(one.solver)
            pcc[row, chosen] = found.pcc_per_gene
            predicted[np.ix_(fold.test, chosen)] = one.prediction
        if best is None:
            # the same genes for all models, so that their maps can be compared
            best = genes_to_map(pcc, options.num_map_genes)
        maps += spot_maps(
            cohort, label, protocol.protocol, protocol.genes, protocol.targets, predicted, best, shown
        )
        on_model(label)
    return maps, solvers


def _per_gene(found: ExpressionMetrics, genes: list[str]) -> dict[str, dict[str, float]]:
    return {
        name: dict(zip(genes, getattr(found, f"{name}_per_gene").tolist(), strict=True)) for name in _PER_GENE
    }
