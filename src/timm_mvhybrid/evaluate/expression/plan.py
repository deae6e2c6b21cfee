"""HEST layout + options → targets, folds and panels, all checked before the first patch is embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort, check_panel
from ...cohorts.csv_tables import read_genes, read_studies
from ...cohorts.gene_panels import PanelMethod
from ...cohorts.hest_layout import HestTask, read_sample
from ...probes.ridge import ridge_setting
from ...probes.splits import Fold
from ...runtime.errors import DataError, EvaluationError
from .options import HEST_COMPONENTS, ExpressionOptions, ProbeOptions
from .protocols import PanelChoice, Protocol, choose_panels, choose_protocols, make_folds


@dataclass(frozen=True, eq=False, kw_only=True)
class ProtocolPlan:
    """One protocol, ready to be scored.

    Attributes:
        protocol: The protocol.
        folds: Its folds over spots.
        panels: Genes of each fold.
        genes: Genes of all folds, sorted.
        targets: log1p counts, (N, genes) float64.
    """

    protocol: Protocol
    folds: list[Fold]
    panels: list[list[str]]
    genes: list[str]
    targets: NDArray[np.float64]

    @property
    def columns(self) -> list[NDArray[np.int64]]:
        """Genes of each fold, as columns of the targets."""
        column_of = {gene: index for index, gene in enumerate(self.genes)}
        return [np.array([column_of[gene] for gene in names]) for names in self.panels]

    def num_components(self, options: ProbeOptions, dim: int) -> int | None:
        """Resolves the number of principal components.

        Returns:
            What was asked for; for ``auto`` HEST's number, lowered to what the smallest train part and the width allow.
        """
        if options.num_components == "auto":
            return min(HEST_COMPONENTS, dim, *(len(fold.train) for fold in self.folds))
        return options.num_components


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpressionPlan:
    """All that is read before patches are embedded.

    Attributes:
        cohort: Spots, counts, studies.
        panel: How genes are chosen.
        panel_name: Name of the panel.
        protocols: The protocols.
        files: Files that were read.
        barcodes: Barcode of each spot.
        generated: Whether the data say of themselves that they were generated.
    """

    cohort: ExpressionCohort
    panel: PanelChoice
    panel_name: str
    protocols: list[ProtocolPlan]
    files: list[Path]
    barcodes: list[str]
    generated: bool


def make_plan(task: HestTask, options: ExpressionOptions, dims: Mapping[str, int]) -> ExpressionPlan:
    """Reads the targets and refuses what cannot work.

    Raises:
        DataError: A file cannot be used.
        EvaluationError: The data do not allow a protocol, or a fold has too few spots, genes or studies for what was
            asked for.
    """
    samples = [read_sample(task, name, options.counts_layer) for name in task.samples]
    panel, panel_name, panel_file = _panel(task, options)
    if panel.method is None:
        check_panel(panel.genes, samples, panel_name)
    studies: dict[str, str] = {}
    patients: dict[str, str] = {}
    if options.studies is not None:
        studies, patients = read_studies(options.studies, task.samples)
    cohort = ExpressionCohort.of(samples, splits=task.splits, studies=studies, patients=patients)
    files = [sample.expression for sample in samples]
    files += [file for file in (options.studies, panel_file) if file is not None]
    plan = ExpressionPlan(
        cohort=cohort,
        panel=panel,
        panel_name=panel_name,
        protocols=[
            _plan_protocol(cohort, protocol, panel, options.probe)
            for protocol in choose_protocols(cohort, options.protocols)
        ],
        files=[*files, *sorted(task.path.glob("splits/*.csv"))],
        barcodes=[barcode for sample in samples for barcode in sample.barcodes],
        generated=any(sample.generated for sample in samples),
    )
    for protocol in plan.protocols:
        for label, dim in dims.items():
            _check_probe(cohort, protocol, options.probe, label, dim)
    return plan


def nested_groups(cohort: ExpressionCohort) -> NDArray[np.str_]:
    """Says what a nested choice of the penalty must not split: studies, or samples where no studies are known."""
    return cohort.label_of_spots(cohort.studies or {sample: sample for sample in cohort.samples})


def _plan_protocol(
    cohort: ExpressionCohort, protocol: Protocol, panel: PanelChoice, probe: ProbeOptions
) -> ProtocolPlan:
    folds = make_folds(cohort, protocol, probe.num_folds, probe.seed)
    try:
        panels = choose_panels(cohort, folds, panel)
    except EvaluationError as error:
        raise EvaluationError(f"protocol {protocol}: {error}") from error
    genes = sorted(set().union(*panels))
    return ProtocolPlan(
        protocol=protocol, folds=folds, panels=panels, genes=genes, targets=cohort.log_counts(genes)
    )


def _check_probe(
    cohort: ExpressionCohort, plan: ProtocolPlan, probe: ProbeOptions, label: str, dim: int
) -> None:
    groups = nested_groups(cohort) if probe.alpha == "nested" else None
    for fold, genes in zip(plan.folds, plan.panels, strict=True):
        where = f"protocol {plan.protocol}, fold {fold.name}, model {label}"
        try:
            ridge_setting(
                len(fold.train), dim, len(genes), probe.preset, plan.num_components(probe, dim), None
            )
        except EvaluationError as error:
            raise EvaluationError(f"{where}: {error}") from error
        if groups is not None and len(np.unique(groups[fold.train])) < 2:
            raise EvaluationError(
                f"{where}: a nested choice of alpha needs at least two studies to train on, and there is 1; give alpha as "
                "a number"
            )


def _panel(task: HestTask, options: ExpressionOptions) -> tuple[PanelChoice, str, Path | None]:
    """Resolves the panel: how genes are chosen, its name, and its file if it has one."""
    if options.panel in get_args(PanelMethod):
        choice = PanelChoice(
            method=options.panel,  # type: ignore[arg-type]
            k=options.num_genes,
            on_all_samples=options.select_on_all_samples,
            n_top_per_slide=options.n_top_per_slide,
        )
        return choice, str(options.panel), None
    if options.panel == "task":
        found: Sequence[Path] = sorted(task.path.glob("var_*genes.json"))
        if len(found) != 1:
            raise DataError(
                f"{task.path}: has {len(found)} files var_<k>genes.json; name one with --panel, or use --panel hvg"
            )
        file = found[0]
    else:
        file = Path(options.panel)
    return PanelChoice(method=None, genes=tuple(read_genes(file))), file.name, file
