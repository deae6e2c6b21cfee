"""HEST layout + options → targets, folds and genes, all checked before the first patch is embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort
from ...embed.baselines import BLIND, PREFIX
from ...probes.ridge import ridge_setting
from ...probes.ridge_options import HEST_COMPONENTS
from ...probes.splits import Fold, leave_one_out, random_folds
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

    @property
    def lowered(self) -> str | None:
        """Says which numbers of components of models, baselines apart, are not HEST's; None where all are."""
        models = {label: num for label, num in self.num_components.items() if not label.startswith(PREFIX)}
        lowered = sorted({num for num in models.values() if num not in (None, HEST_COMPONENTS)})
        if not lowered:
            return None
        return (
            f"{self.protocol}: {' or '.join(map(str, lowered))} principal components in place of HEST's "
            f"{HEST_COMPONENTS}, as many as the smallest train part, "
            f"{min(len(fold.train) for fold in self.folds)} spots, and the embeddings allow."
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpressionPlan:
    """All that is decided before patches are embedded.

    Attributes:
        panel: What the result says of the genes: name, number, and on what they were selected.
        protocols: The protocols.
        notes: What readers of the result must know of data, genes and folds.
    """

    panel: dict[str, Any]
    protocols: list[ProtocolPlan]
    notes: list[str]

    @property
    def genes(self) -> set[str]:
        """Genes of any protocol and fold."""
        return {gene for one in self.protocols for gene in one.genes}


def make_plan(
    cohort: ExpressionCohort, options: ExpressionOptions, dims: Mapping[str, int], panel_file: Path | None
) -> ExpressionPlan:
    """Chooses folds and genes, and refuses what cannot work with embeddings of these lengths.

    Args:
        cohort: Spots, counts, studies.
        options: What is asked for.
        dims: Model's label → length of its embeddings.
        panel_file: The list that the cohort's genes are from; None where they are to be selected.

    Raises:
        EvaluationError: The data do not allow a protocol, or a fold has too few spots, genes or studies for what was
            asked for.
    """
    selected_on = "all samples" if options.select_on_all_samples else "training folds"
    panel = {
        "panel": str(options.panel) if panel_file is None else panel_file.name,
        "panel_size": options.num_genes if cohort.panel is None else len(cohort.panel),
        "panel_selected_on": selected_on if cohort.panel is None else "file",
    }
    chosen = _choose_protocols(cohort, options.protocols)
    notes = _notes(cohort, panel, chosen)
    protocols = [_plan_protocol(protocol, cohort, options, dims) for protocol in chosen]
    if options.probe.num_components == "auto":
        notes += [one.lowered for one in protocols if one.lowered is not None]
    return ExpressionPlan(panel=panel, protocols=protocols, notes=notes)


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
    # HEST selects genes once, on all samples, test parts included
    once = options.select_on_all_samples
    method: Any = options.panel
    with errors_in(f"protocol {protocol}"):
        panels = cohort.panels(
            [np.arange(len(cohort.sample_of))] if once else [fold.train for fold in folds],
            method,
            options.num_genes,
            n_top_per_slide=options.n_top_per_slide,
        )
    panels = panels * len(folds) if once else panels
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
    if label in BLIND:
        return None
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
        return leave_one_out("study", "studies", cohort.study_of)
    return leave_one_out("patient", "patients", cohort.patient_of)


def _notes(cohort: ExpressionCohort, panel: Mapping[str, Any], protocols: Sequence[Protocol]) -> list[str]:
    notes = []
    if cohort.num_missing_genes:
        notes.append(
            f"{cohort.num_missing_genes} genes are not measured in every sample and were left out before any selection."
        )
    if panel["panel_selected_on"] == "all samples":
        notes.append("Genes were selected on all samples, test parts included, as HEST does.")
    if panel["panel_selected_on"] == "file":
        notes.append("Genes come from a file; whether they were chosen on test samples is not known here.")
    for study in sorted(set(cohort.studies.values())):
        members = [name for name, its in cohort.studies.items() if its == study]
        if len(members) == 1:
            notes.append(f"Study '{study}' has a single sample, '{members[0]}'.")
    if "random" in protocols:
        notes.append(
            "In random folds neighbouring spots lie in train and test parts alike, so their scores are optimistic."
        )
    return notes
