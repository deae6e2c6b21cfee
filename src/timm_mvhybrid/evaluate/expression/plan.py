"""HEST layout + options → targets, folds and genes, all checked before the first patch is embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort, read_cohort
from ...cohorts.gene_panels import PanelMethod
from ...cohorts.hest_layout import HestTask, task_panel
from ...embed.baselines import PREFIX
from ...probes.ridge import ridge_setting
from ...probes.ridge_options import HEST_COMPONENTS
from ...probes.splits import Fold, patient_folds, random_folds, study_folds
from ...runtime.errors import EvaluationError
from ..arguments import errors_in
from .options import ExpressionOptions, ProbeOptions

Protocol = Literal["csv", "random", "loso", "patient"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ProtocolPlan:
    """One protocol, ready to be scored.

    Attributes:
        protocol: The protocol.
        folds: Its folds over spots.
        panels: Genes of each fold.
        genes: Genes of all folds, sorted.
        targets: log1p counts, (N, genes) float64.
        num_components: Model's label → principal components, as asked for; for ``auto`` HEST's number, lowered to what
            the smallest train part and the model's width allow.
    """

    protocol: Protocol
    folds: list[Fold]
    panels: list[list[str]]
    genes: list[str]
    targets: NDArray[np.float64]
    num_components: dict[str, int | None]

    @property
    def columns(self) -> list[NDArray[np.int64]]:
        """Genes of each fold, as columns of the targets."""
        column_of = {gene: index for index, gene in enumerate(self.genes)}
        return [np.array([column_of[gene] for gene in names]) for names in self.panels]


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpressionPlan:
    """All that is read before patches are embedded.

    Attributes:
        cohort: Spots, counts, studies.
        panel: What the result says of the genes: name, number, and on what they were selected.
        protocols: The protocols.
    """

    cohort: ExpressionCohort
    panel: dict[str, Any]
    protocols: list[ProtocolPlan]


def make_plan(task: HestTask, options: ExpressionOptions, dims: Mapping[str, int]) -> ExpressionPlan:
    """Reads the targets and refuses what cannot work with embeddings of these lengths.

    Raises:
        DataError: A file cannot be used.
        EvaluationError: The data do not allow a protocol, or a fold has too few spots, genes or studies for what was
            asked for.
    """
    file = _panel_file(task, options)
    cohort = read_cohort(task, counts_layer=options.counts_layer, studies=options.studies, panel=file)
    protocols = _choose_protocols(cohort, options.protocols)
    selected_on = "all samples" if options.select_on_all_samples else "training folds"
    return ExpressionPlan(
        cohort=cohort,
        panel={
            "panel": str(options.panel) if file is None else file.name,
            "panel_size": options.num_genes if cohort.panel is None else len(cohort.panel),
            "panel_selected_on": selected_on if cohort.panel is None else "file",
        },
        protocols=[_plan_protocol(protocol, cohort, options, dims) for protocol in protocols],
    )


def _panel_file(task: HestTask, options: ExpressionOptions) -> Path | None:
    """Finds the list of genes; None where they are to be selected."""
    if options.panel in get_args(PanelMethod):
        return None
    return task_panel(task) if options.panel == "task" else Path(options.panel)


def _choose_protocols(cohort: ExpressionCohort, wanted: Sequence[str]) -> list[Protocol]:
    """Takes the protocols that are wanted; if none is, all that the data allow, leaving patients out excepted."""
    if not wanted:
        chosen: list[Protocol] = ["csv"] if cohort.splits else []
        return [*chosen, "random", "loso"] if cohort.studies else chosen or ["random"]
    for name in wanted:
        if name not in get_args(Protocol):
            raise EvaluationError(f"unknown protocol '{name}'; choose from {', '.join(get_args(Protocol))}")
        if name == "csv" and not cohort.splits:
            raise EvaluationError(
                "the protocol csv needs splits/train_<i>.csv and test_<i>.csv, and there are none"
            )
        if name == "loso" and not cohort.studies:
            raise EvaluationError("the protocol loso needs the study of each sample; give `studies=FILE`")
        if name == "patient" and not cohort.patients:
            raise EvaluationError("the protocol patient needs a column patient in `studies=FILE`")
    return list(dict.fromkeys(wanted))  # type: ignore[arg-type]


def _plan_protocol(
    protocol: Protocol,
    cohort: ExpressionCohort,
    options: ExpressionOptions,
    dims: Mapping[str, int],
) -> ProtocolPlan:
    probe = options.probe
    folds = _make_folds(protocol, cohort, probe)
    with errors_in(f"protocol {protocol}"):
        panels = _choose_genes(cohort, folds, options)
    genes = sorted(set().union(*panels))
    targets = cohort.log_counts(genes)
    num_components = {
        label: _num_components(probe.num_components, label, dim, min(len(fold.train) for fold in folds))
        for label, dim in dims.items()
    }
    for label, dim in dims.items():
        for fold, panel in zip(folds, panels, strict=True):
            with errors_in(f"protocol {protocol}, fold {fold.name}, model {label}"):
                ridge_setting(len(fold.train), dim, len(panel), probe.preset, num_components[label], None)
                if probe.alpha == "nested" and len(np.unique(cohort.study_of[fold.train])) < 2:
                    raise EvaluationError(
                        "a nested choice of `alpha` needs at least two studies to train on, and there is 1; give a number"
                    )
    return ProtocolPlan(
        protocol=protocol,
        folds=folds,
        panels=panels,
        genes=genes,
        targets=targets,
        num_components=num_components,
    )


def _num_components(wanted: int | Literal["auto"] | None, label: str, dim: int, num_train: int) -> int | None:
    """Lowers what was not asked for explicitly; baselines are narrower than models, and take what they have."""
    if wanted == "auto":
        return min(HEST_COMPONENTS, dim, num_train)
    return min(wanted, dim) if wanted is not None and label.startswith(PREFIX) else wanted


def _make_folds(protocol: Protocol, cohort: ExpressionCohort, probe: ProbeOptions) -> list[Fold]:
    if protocol == "csv":
        return [
            Fold(cohort.rows(split.train), cohort.rows(split.test), split.name) for split in cohort.splits
        ]
    if protocol == "random":
        return random_folds(len(cohort.sample_of), probe.num_folds, probe.seed)
    if protocol == "loso":
        return study_folds(cohort.study_of)
    return patient_folds(cohort.patient_of)


def _choose_genes(
    cohort: ExpressionCohort, folds: Sequence[Fold], options: ExpressionOptions
) -> list[list[str]]:
    """Takes the given genes, or selects those of each fold on its train part, or on all samples as HEST does."""
    if cohort.panel is not None:
        return [list(cohort.panel)] * len(folds)
    everything = np.arange(len(cohort.sample_of))
    method: Any = options.panel
    panels = [
        cohort.select_genes(rows, method, options.num_genes, n_top_per_slide=options.n_top_per_slide)
        for rows in ([everything] if options.select_on_all_samples else [fold.train for fold in folds])
    ]
    return panels * len(folds) if options.select_on_all_samples else panels
