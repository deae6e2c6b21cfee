"""Samples in the HEST layout → one table of spots with counts, studies and patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import DataError
from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from .csv_tables import read_genes, read_studies
from .gene_panels import PanelMethod, select_genes
from .hest_layout import HestSample, HestSplit, HestTask, read_sample


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpressionCohort:
    """Spots of all samples, one sample after the other.

    Attributes:
        samples: Sample names.
        sample_of: Number of the sample of each spot, (N,).
        genes: Genes that every sample measures.
        counts: Raw counts, (N, genes), SciPy CSR.
        spatial: Positions in px of the slide, (N, 2).
        studies: Sample → study; empty if unknown.
        patients: Sample → patient; empty if unknown.
        study_of: Study of each spot, (N,); its sample if studies are unknown.
        patient_of: Patient of each spot, (N,); its sample if patients are unknown.
        splits: The task's own splits.
        num_missing_genes: Genes that some samples measure and others do not; they are left out.
        generated: Whether a file says that it was generated.
        panel: Genes of a given list, all of them measured; None without one.
        files: What was read beside the patches.
    """

    samples: tuple[str, ...]
    sample_of: NDArray[np.int64]
    genes: tuple[str, ...]
    counts: Any
    spatial: NDArray[np.float64]
    studies: dict[str, str]
    patients: dict[str, str]
    study_of: NDArray[np.str_]
    patient_of: NDArray[np.str_]
    splits: tuple[HestSplit, ...]
    num_missing_genes: int
    generated: bool
    panel: tuple[str, ...] | None = None
    files: tuple[Path, ...] = ()

    @staticmethod
    def of(
        samples: Sequence[HestSample],
        *,
        splits: Sequence[HestSplit] = (),
        studies: Mapping[str, str] | None = None,
        patients: Mapping[str, str] | None = None,
    ) -> ExpressionCohort:
        """Stacks samples.

        Raises:
            EvaluationError: If the samples have no gene in common.
        """
        shared = set.intersection(*(set(sample.genes) for sample in samples))
        everywhere = set().union(*(sample.genes for sample in samples))
        # the first sample's order, so that a single sample keeps its own
        genes = tuple(gene for gene in samples[0].genes if gene in shared)
        if not genes:
            names = ", ".join(sample.expression.name for sample in samples)
            raise EvaluationError(f"no gene is in all of {names}; check that all use the same gene names")
        stacked = []
        for sample in samples:
            position = {gene: index for index, gene in enumerate(sample.genes)}
            stacked.append(sample.counts[:, [position[gene] for gene in genes]])
        sample_ids = [sample.sample_id for sample in samples]
        sample_of = np.repeat(np.arange(len(samples)), [len(sample.barcodes) for sample in samples])
        study_of, patient_of = (
            np.array([known[name] if known else name for name in sample_ids])[sample_of]
            for known in (studies, patients)
        )
        return ExpressionCohort(
            samples=tuple(sample_ids),
            sample_of=sample_of,
            genes=genes,
            counts=require("scipy.sparse").vstack(stacked, format="csr"),
            spatial=np.concatenate([sample.spatial for sample in samples]),
            studies=dict(studies or {}),
            patients=dict(patients or {}),
            study_of=study_of,
            patient_of=patient_of,
            splits=tuple(splits),
            num_missing_genes=len(everywhere) - len(genes),
            generated=any(sample.generated for sample in samples),
        )

    def rows(self, samples: Sequence[str]) -> NDArray[np.int64]:
        """Finds the spots of samples."""
        wanted = [self.samples.index(sample) for sample in samples]
        return np.flatnonzero(np.isin(self.sample_of, wanted))

    def select_genes(
        self, rows: NDArray[np.int64], method: PanelMethod, num_genes: int, *, n_top_per_slide: int = 2000
    ) -> list[str]:
        """Selects genes on some spots, sample by sample, see ``gene_panels.select_genes``.

        Raises:
            EvaluationError: If there are not that many genes to choose from.
        """
        sample_of = self.sample_of[rows]
        counts = [self.counts[rows[sample_of == sample]] for sample in np.unique(sample_of)]
        return select_genes(
            counts, [self.genes] * len(counts), method, num_genes, n_top_per_slide=n_top_per_slide
        )

    def log_counts(self, genes: Sequence[str]) -> NDArray[np.float64]:
        """Computes the targets.

        Returns:
            log1p counts, (N, genes) float64.
        """
        position = {gene: index for index, gene in enumerate(self.genes)}
        columns = self.counts[:, [position[gene] for gene in genes]].toarray()
        targets: NDArray[np.float64] = np.log1p(columns.astype(np.float64))
        return targets


def read_cohort(
    task: HestTask, *, counts_layer: str | None = None, studies: Path | None = None, panel: Path | None = None
) -> ExpressionCohort:
    """Reads all that is known of a task's spots, small files first.

    Args:
        task: The task.
        counts_layer: The layer of each h5ad that holds the counts, or ``raw``; None takes X.
        studies: CSV, see ``read_studies``; None if studies are unknown.
        panel: List of genes that every sample must measure, see ``read_genes``.

    Raises:
        DataError: If a file cannot be used, or a sample lacks a gene of the list.
        EvaluationError: If the samples have no gene in common.
    """
    genes = None if panel is None else tuple(read_genes(panel))
    study_of, patient_of = ({}, {}) if studies is None else read_studies(studies, task.samples)
    samples = [read_sample(task, name, counts_layer) for name in task.samples]
    for sample in samples:
        missing = [gene for gene in genes or () if gene not in set(sample.genes)]
        if missing and panel is not None:
            raise DataError(
                f"{sample.expression}: lacks the gene '{missing[0]}' of {panel.name} ({len(missing)} missing); remove "
                "it from the panel, leave the sample out, or select genes with `panel='hvg'`"
            )
    files = [sample.expression for sample in samples]
    files += [
        *(file for file in (studies, panel) if file is not None),
        *sorted(task.path.glob("splits/*.csv")),
    ]
    cohort = ExpressionCohort.of(samples, splits=task.splits, studies=study_of, patients=patient_of)
    return replace(cohort, panel=genes, files=tuple(files))
