"""Samples in the HEST layout → one table of spots with counts, studies and patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import DataError
from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from .hest_layout import HestSample, HestSplit


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
        splits: The task's own splits.
        num_missing_genes: Genes that some samples measure and others do not; they are left out.
    """

    samples: tuple[str, ...]
    sample_of: NDArray[np.int64]
    genes: tuple[str, ...]
    counts: Any
    spatial: NDArray[np.float64]
    studies: dict[str, str]
    patients: dict[str, str]
    splits: tuple[HestSplit, ...]
    num_missing_genes: int

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
        lengths = [len(sample.barcodes) for sample in samples]
        return ExpressionCohort(
            samples=tuple(sample.sample_id for sample in samples),
            sample_of=np.repeat(np.arange(len(samples)), lengths),
            genes=genes,
            counts=require("scipy.sparse").vstack(stacked, format="csr"),
            spatial=np.concatenate([sample.spatial for sample in samples]),
            studies=dict(studies or {}),
            patients=dict(patients or {}),
            splits=tuple(splits),
            num_missing_genes=len(everywhere) - len(genes),
        )

    def label_of_spots(self, labels: Mapping[str, str]) -> NDArray[np.str_]:
        """Spreads labels of samples over their spots.

        Returns:
            (N,).
        """
        return np.array([labels[sample] for sample in self.samples])[self.sample_of]

    def rows(self, samples: Sequence[str]) -> NDArray[np.int64]:
        """Finds the spots of samples."""
        wanted = [self.samples.index(sample) for sample in samples]
        return np.flatnonzero(np.isin(self.sample_of, wanted))

    def log_counts(self, genes: Sequence[str]) -> NDArray[np.float64]:
        """Computes the targets.

        Returns:
            log1p counts, (N, genes) float64.
        """
        position = {gene: index for index, gene in enumerate(self.genes)}
        columns = self.counts[:, [position[gene] for gene in genes]].toarray()
        targets: NDArray[np.float64] = np.log1p(columns.astype(np.float64))
        return targets


def check_panel(genes: Sequence[str], samples: Sequence[HestSample], origin: str) -> None:
    """Checks that every sample measures the genes of a given panel.

    Raises:
        DataError: If a gene is missing in a sample.
    """
    for sample in samples:
        missing = [gene for gene in genes if gene not in set(sample.genes)]
        if missing:
            raise DataError(
                f"{sample.expression}: lacks the gene '{missing[0]}' of {origin} ({len(missing)} missing); remove it "
                "from the panel, leave the sample out, or select genes with --panel hvg"
            )
