"""Samples in the HEST layout → one table of spots with counts, studies and patients; the genes to predict."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data import DataError
from ..probes.arrays import check_choice
from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from .csv_tables import read_genes, read_studies
from .hest_layout import HestSample, HestSplit, HestTask, read_sample

PanelMethod = Literal["hvg", "mean", "hmhvg"]
# HEST's own name of the same panel
_SYNONYMS = {"var": "hvg"}
_NOT_GENES = ("BLANK", "Control")
_MIN_CELLS = 0.1
_HOUSEKEEPING = ("MT", "mt", "RPS", "RPL")


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

    def panels(
        self,
        parts: Sequence[NDArray[np.int64]],
        method: PanelMethod,
        num_genes: int,
        *,
        n_top_per_slide: int = 2000,
    ) -> list[list[str]]:
        """Selects genes on each of some parts of the spots, sample by sample; a given list is taken for all of them.

        Args:
            parts: Spots of each part.
            method: As in ``select_genes``.
            num_genes: Genes to select.
            n_top_per_slide: As in ``select_genes``.

        Returns:
            The genes of each part.

        Raises:
            EvaluationError: If there are not that many genes to choose from.
        """
        if self.panel is not None:
            return [list(self.panel)] * len(parts)
        panels = []
        for rows in parts:
            sample_of = self.sample_of[rows]
            counts = [self.counts[rows[sample_of == sample]] for sample in np.unique(sample_of)]
            names = [self.genes] * len(counts)
            panels.append(select_genes(counts, names, method, num_genes, n_top_per_slide=n_top_per_slide))
        return panels

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


def select_genes(
    counts_per_slide: Sequence[Any],
    names_per_slide: Sequence[Sequence[str]],
    method: PanelMethod = "hvg",
    k: int = 50,
    *,
    min_cells: float = _MIN_CELLS,
    n_top_per_slide: int = 2000,
) -> list[str]:
    """Chooses the genes to predict.

    - ``hvg`` and ``mean``: genes present in at least the fraction ``min_cells`` of the spots of every slide, without names
      that contain BLANK or Control; over all spots stacked, the ``k`` most variable ones by scanpy's
      ``highly_variable_genes`` on float32 log1p counts, in the order of the stack, or the ``k`` of the highest mean
      count, highest first.
    - ``hmhvg``, highly variable and highly expressed: the union over slides of the ``n_top_per_slide`` most variable
      genes after normalisation, without names that start with MT, mt, RPS or RPL; of these, on raw counts, the
      intersection of the N highest means and the N highest standard deviations, for the smallest N that gives ``k``.

    In float32 a constant gene has a tiny variance, and where no other gene has its mean ``hvg`` may choose it, as the
    recipe does; ``select_at_most`` leaves such genes out first.

    Source: HEST-Library ``get_k_genes`` (hvg as its 'var', mean) and Stem's gene selection (hmhvg).

    Args:
        counts_per_slide: Raw counts, (spots, genes) for each slide; NumPy or SciPy sparse.
        names_per_slide: Gene names of each slide's columns.
        method: The recipe.
        k: Number of genes.
        min_cells: Fraction of spots, 0 to 1, rounded up to spots; 0 keeps every gene.
        n_top_per_slide: For ``hmhvg``.

    Returns:
        Gene names; ``hmhvg`` returns k + 1 where the last N adds two genes at once, as the original does.

    Raises:
        EvaluationError: If fewer than ``k`` genes are left, shapes do not fit, a name occurs twice in a slide, or
            scanpy is not installed.
    """
    method = _SYNONYMS.get(method, method)  # type: ignore[assignment]
    check_choice("method", method, PanelMethod)
    if k < 1 or not 0 <= min_cells <= 1:
        raise EvaluationError(f"`k` must be at least 1 and `min_cells` from 0 to 1, not {k} and {min_cells}")
    slides = _check(counts_per_slide, names_per_slide)
    if method == "hmhvg":
        return _high_mean_high_variance(slides, k, n_top_per_slide)
    names = _measured_genes(slides, min_cells)
    if len(names) < k:
        raise EvaluationError(
            f"{k} genes wanted, {len(names)} are present in {min_cells:.0%} of the spots of each of {len(slides)} "
            "slides; ask for fewer, or lower `min_cells`"
        )
    if method == "mean":
        total = np.sum([_column_sums(_columns(counts, own, names)) for counts, own in slides], axis=0)
        # a stable sort keeps the order of the stack among equal means, as pandas' nlargest does
        return [names[index] for index in np.argsort(-total, kind="stable")[:k]]
    stacked = np.concatenate([_dense(_columns(counts, own, names), np.float32) for counts, own in slides])
    chosen = _highly_variable(stacked, names, k, normalise=False)
    return [name for name in names if name in chosen][:k]


def select_at_most(
    counts_per_slide: Sequence[Any], names_per_slide: Sequence[Sequence[str]], k: int = 50
) -> list[str]:
    """Chooses by ``hvg``, among the genes that vary; all of these, one at least, where there are not more than ``k``."""
    slides = _check(counts_per_slide, names_per_slide)
    names = _measured_genes(slides, _MIN_CELLS)
    varying: list[str] = []
    if names:
        parts = [_columns(counts, own, names) for counts, own in slides]
        lowest = np.min([_dense(part.min(axis=0), np.float64).ravel() for part in parts], axis=0)
        highest = np.max([_dense(part.max(axis=0), np.float64).ravel() for part in parts], axis=0)
        varying = [name for name, low, high in zip(names, lowest, highest, strict=True) if low < high]
    if not varying:
        raise EvaluationError(
            f"no gene is present in {_MIN_CELLS:.0%} of the spots of each of {len(slides)} slides and varies between "
            "spots; check that these are the counts of these spots, under the same gene names everywhere"
        )
    if len(varying) <= k:
        return varying
    return select_genes(
        [_columns(counts, own, varying) for counts, own in slides], [varying] * len(slides), k=k
    )


def _check(
    counts_per_slide: Sequence[Any], names_per_slide: Sequence[Sequence[str]]
) -> list[tuple[Any, list[str]]]:
    if len(counts_per_slide) == 0 or len(counts_per_slide) != len(names_per_slide):
        raise EvaluationError(
            f"counts of {len(counts_per_slide)} slides and names of {len(names_per_slide)}; each slide needs both"
        )
    slides = []
    for index, (counts, given) in enumerate(zip(counts_per_slide, names_per_slide, strict=True)):
        names = [str(name) for name in given]
        if getattr(counts, "ndim", 0) != 2 or counts.shape[1] != len(names):
            raise EvaluationError(
                f"slide {index}: counts of shape {getattr(counts, 'shape', None)} for {len(names)} gene names"
            )
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise EvaluationError(
                f"slide {index}: gene '{twice[0]}' occurs more than once; make the names unique "
                "(AnnData.var_names_make_unique), or add its columns together"
            )
        slides.append((counts, names))
    return slides


def _columns(counts: Any, names: list[str], wanted: Sequence[str]) -> Any:
    position = {name: index for index, name in enumerate(names)}
    return counts[:, [position[name] for name in wanted]]


def _dense(counts: Any, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    converted = counts.astype(dtype)
    dense: NDArray[Any] = converted.toarray() if hasattr(converted, "toarray") else np.asarray(converted)
    return dense


def _column_sums(counts: Any) -> NDArray[np.float64]:
    """Sums over spots in float64: SciPy sums a sparse matrix in its own type, whatever ``dtype`` says."""
    return np.asarray(counts.astype(np.float64).sum(axis=0)).ravel()


def _measured_genes(slides: list[tuple[Any, list[str]]], min_cells: float) -> list[str]:
    """Finds the genes that enough spots of every slide have."""
    common: list[str] | None = None
    for counts, names in slides:
        num_present = np.asarray((counts > 0).sum(axis=0)).ravel()
        kept = [
            name
            for name, number in zip(names, num_present, strict=True)
            if number >= np.ceil(min_cells * counts.shape[0])
        ]
        # one slide keeps its own order; the intersection of several is sorted, as NumPy's is
        common = kept if common is None else sorted(set(common) & set(kept))
    return [name for name in common or [] if not any(mark in name for mark in _NOT_GENES)]


def _highly_variable(counts: NDArray[np.float32], names: list[str], k: int, *, normalise: bool) -> set[str]:
    """Runs scanpy's selection, in float32 as the recipes do; changes ``counts``."""
    anndata, scanpy = require("anndata"), require("scanpy")
    data = anndata.AnnData(counts)
    data.var_names = names
    with warnings.catch_warnings():
        # scanpy's own code uses deprecated parts of pandas and anndata; no number depends on them
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        if normalise:
            scanpy.pp.filter_cells(data, min_counts=1)
            scanpy.pp.filter_genes(data, min_counts=1)
            scanpy.pp.normalize_total(data)
        scanpy.pp.log1p(data)
        scanpy.pp.highly_variable_genes(data, n_top_genes=min(k, data.n_vars))
    return set(data.var_names[data.var["highly_variable"]])


def _high_mean_high_variance(slides: list[tuple[Any, list[str]]], k: int, n_top_per_slide: int) -> list[str]:
    shared = set.intersection(*(set(names) for _, names in slides))
    # the first slide's order is the one in which ties are broken
    common = [name for name in slides[0][1] if name in shared]
    if not common:
        raise EvaluationError(
            f"{len(slides)} slides have no gene in common; check that all use the same gene names"
        )
    union: set[str] = set()
    for counts, names in slides:
        matrix = _dense(_columns(counts, names, common), np.float32)
        union |= _highly_variable(matrix, common, n_top_per_slide, normalise=True)
    candidates = [name for name in sorted(union) if not name.startswith(_HOUSEKEEPING)]
    if len(candidates) < k:
        raise EvaluationError(
            f"{k} genes wanted, {len(candidates)} are among the {n_top_per_slide} most variable of a slide and not "
            "mitochondrial or ribosomal; ask for fewer, or raise `n_top_per_slide`"
        )
    stacked = np.concatenate(
        [_dense(_columns(counts, names, candidates), np.float64) for counts, names in slides]
    )
    by_mean = np.argsort(-stacked.mean(axis=0), kind="stable")
    by_std = np.argsort(-stacked.std(axis=0), kind="stable")
    for num in range(k, len(candidates) + 1):
        both = set(by_mean[:num]) & set(by_std[:num])
        if len(both) >= k:
            break
    return [name for index, name in enumerate(candidates) if index in both]
