"""Cohort + wish → folds over spots, and the genes of each fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ...cohorts.cohort import ExpressionCohort
from ...cohorts.gene_panels import PanelMethod, select_genes
from ...probes.splits import Fold, patient_folds, random_folds, study_folds
from ...runtime.errors import EvaluationError

Protocol = Literal["csv", "random", "loso", "patient"]


@dataclass(frozen=True, kw_only=True)
class PanelChoice:
    """Which genes are predicted.

    Args:
        method: `hvg`, `mean`, `hmhvg`; None for the genes given.
        genes: The given panel.
        k: Genes to select.
        on_all_samples: Select once on all samples, as HEST does, test parts included; otherwise on each fold's train
            part.
        n_top_per_slide: For `hmhvg`.
    """

    method: PanelMethod | None = "hvg"
    genes: tuple[str, ...] = ()
    k: int = 50
    on_all_samples: bool = False
    n_top_per_slide: int = 2000

    @property
    def selected_on(self) -> str:
        """Says in words where the genes were selected."""
        if self.method is None:
            return "file"
        return "all samples" if self.on_all_samples else "training folds"


def choose_protocols(cohort: ExpressionCohort, wanted: Sequence[str]) -> list[Protocol]:
    """Decides which protocols to run.

    Args:
        cohort: The cohort.
        wanted: Protocols, or none for all that the data allow: the task's own splits, and, with studies, random folds
            and left-out studies.

    Raises:
        EvaluationError: If one is unknown or the data do not allow it.
    """
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
            raise EvaluationError("the protocol loso needs the study of each sample; give --studies FILE")
        if name == "patient" and not cohort.patients:
            raise EvaluationError("the protocol patient needs a column patient in --studies FILE")
    return list(dict.fromkeys(wanted))  # type: ignore[arg-type]


def make_folds(cohort: ExpressionCohort, protocol: Protocol, num_folds: int, seed: int) -> list[Fold]:
    """Makes the folds of a protocol."""
    if protocol == "csv":
        return [
            Fold(cohort.rows(split.train), cohort.rows(split.test), split.name) for split in cohort.splits
        ]
    if protocol == "loso":
        return study_folds(cohort.label_of_spots(cohort.studies))
    if protocol == "patient":
        return patient_folds(cohort.label_of_spots(cohort.patients))
    return random_folds(len(cohort.sample_of), num_folds, seed)


def choose_panels(cohort: ExpressionCohort, folds: Sequence[Fold], choice: PanelChoice) -> list[list[str]]:
    """Chooses the genes of each fold."""
    if choice.method is None:
        return [list(choice.genes)] * len(folds)
    if choice.on_all_samples:
        return [_select(cohort, np.arange(len(cohort.sample_of)), choice)] * len(folds)
    return [_select(cohort, fold.train, choice) for fold in folds]


def _select(cohort: ExpressionCohort, rows: np.ndarray, choice: PanelChoice) -> list[str]:
    assert choice.method is not None
    slides = np.unique(cohort.sample_of[rows])
    counts = [cohort.counts[rows[cohort.sample_of[rows] == slide]] for slide in slides]
    names = [cohort.genes] * len(counts)
    return select_genes(counts, names, choice.method, choice.k, n_top_per_slide=choice.n_top_per_slide)
