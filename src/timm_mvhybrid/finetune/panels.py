"""Samples that measure the same genes → a panel: its genes, targets of every patch, and their standardisation.

Expression is log(1 + x). By ``cpm``, x is counts in a million of the patch's total over all measured genes. By ``area``,
x is counts per 1,000 µm²: a panel of a few hundred genes, chosen for cell types, has a total that says which cells are
there, and what is divided by it loses just that. Cells of the token grid are divided by the total of the whole patch, or
by their own area, never by their own total: a cell with a single transcript would have a million.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..cohorts.csv_tables import read_genes
from ..runtime.errors import DataError
from ..runtime.extras import require
from .measured import MeasuredSample

CPM = 1e6
AREA_UM2 = 1000.0
SMALL_PANEL = 1000
"""Measured genes below which expression is by area unless asked otherwise."""
_MIN_PRESENT = 0.1
"""Fraction of the training patches that a gene must be in to be chosen for its variability."""
_UNITS = {
    "cpm": "log1p counts per million of the patch's total over all measured genes",
    "area": "log1p counts per 1,000 µm²",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Panel:
    """What is predicted of the cohorts that measure one panel of genes.

    Attributes:
        name: Its name.
        platform: Whether counts are of spots or of transcripts.
        genes: Genes that are predicted.
        normalise: "cpm" or "area".
        unit: What a target is measured in, before standardisation.
        num_measured_genes: Genes that the samples measure.
        mean: Of each gene over training patches, (genes,) float32.
        std: Population deviation, (genes,) float32; 1 where a gene does not vary, which then counts as not measured.
        grid: Cells along a side of a patch; None for spots.
        token_mean: Of each gene over cells of training patches, (genes,); None for spots.
        token_std: Likewise.
        num_training_patches: Patches that the statistics are over.
    """

    name: str
    platform: Literal["spots", "transcripts"]
    genes: tuple[str, ...]
    normalise: Literal["cpm", "area"]
    unit: str
    num_measured_genes: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    grid: int | None
    token_mean: NDArray[np.float32] | None
    token_std: NDArray[np.float32] | None
    num_training_patches: int


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleTargets:
    """Targets of the patches of a sample, not standardised.

    Attributes:
        panel: The panel.
        expression: (patches, genes), SciPy CSR, float32.
        measured: Whether a patch was measured, (patches,).
        has: Whether the sample measures a gene that varies, (genes,).
        tokens: (patches, grid² · genes), SciPy CSR, float32; None for spots.
        token_has: As ``has``, for the cells; None for spots.
    """

    panel: Panel
    expression: Any
    measured: NDArray[np.bool_]
    has: NDArray[np.bool_]
    tokens: Any = None
    token_has: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class _Part:
    """Log expression of a sample in the columns of the panel."""

    values: Any
    num_patches: int
    has: NDArray[np.bool_]


def build_panel(
    name: str, samples: Sequence[MeasuredSample], training: NDArray[np.bool_], *, num_genes: int, grid: int
) -> tuple[Panel, list[SampleTargets]]:
    """Chooses genes, and computes targets and their standardisation from training samples.

    Args:
        name: Name of the panel.
        samples: Its samples.
        training: Which of them are trained on, (samples,).
        num_genes: Genes to choose where a cohort of spots names neither genes nor their number.
        grid: Cells along a side of a patch of transcripts.

    Returns:
        The panel, and the targets of each sample.

    Raises:
        DataError: If the cohorts of a panel differ in platform, genes or normalisation, an area is needed and unknown, a
            gene is measured in no training sample, or no gene varies.
    """
    entry, platform = samples[0].entry, samples[0].platform
    for sample in samples:
        for what, ours, theirs in (
            ("platform", sample.platform, platform),
            ("genes", sample.entry.genes, entry.genes),
            ("normalise", sample.entry.normalise, entry.normalise),
        ):
            if ours != theirs:
                raise DataError(
                    f"{sample.entry.path}: the panel '{name}' has `{what}` {ours}, and {theirs} in {entry.path}; make them "
                    "the same, or give the cohorts different panels"
                )
    normalise, num_measured = _normalisation(name, samples)
    fitted = [sample for sample, train in zip(samples, training, strict=True) if train]
    genes = _genes(name, fitted, num_genes)
    parts = [_part(sample, genes, normalise) for sample in samples]
    mean, std, varies = _statistics(parts, training, 1)
    if not varies.any():
        raise DataError(
            f"{entry.path}: no gene of the panel '{name}' varies among training patches; check the counts"
        )
    token_parts: list[_Part] = []
    token_mean = token_std = token_varies = None
    if platform == "transcripts":
        token_parts = [_part(sample, genes, normalise, grid) for sample in samples]
        token_mean, token_std, token_varies = _statistics(token_parts, training, grid * grid)
    panel = Panel(
        name=name,
        platform=platform,
        genes=genes,
        normalise=normalise,
        unit=_UNITS[normalise],
        num_measured_genes=num_measured,
        mean=mean,
        std=std,
        grid=grid if token_parts else None,
        token_mean=token_mean,
        token_std=token_std,
        num_training_patches=sum(int(sample.measured.sum()) for sample in fitted),
    )
    return panel, [
        SampleTargets(
            panel=panel,
            expression=part.values,
            measured=sample.measured,
            has=part.has & varies,
            tokens=token_parts[index].values if token_parts else None,
            token_has=None if token_varies is None else part.has & token_varies,
        )
        for index, (sample, part) in enumerate(zip(samples, parts, strict=True))
    ]


def log_expression(sample: MeasuredSample, normalise: Literal["cpm", "area"]) -> Any:
    """Normalises all that a sample measures.

    Args:
        sample: The sample.
        normalise: By the patch's total, or by area.

    Returns:
        (patches, genes), SciPy CSR, float32.
    """
    return _log(sample.counts, _factors(sample, normalise))


def _normalisation(name: str, samples: Sequence[MeasuredSample]) -> tuple[Literal["cpm", "area"], int]:
    num_measured = len(set().union(*(sample.genes for sample in samples)))
    asked = samples[0].entry.normalise
    normalise: Literal["cpm", "area"] = "cpm"
    if asked == "area" or (asked == "auto" and num_measured < SMALL_PANEL):
        normalise = "area"
        unknown = next((sample for sample in samples if sample.area_um2 is None), None)
        if unknown is not None:
            why = (
                "is asked for" if asked == "area" else f"is the default below {SMALL_PANEL:,} measured genes"
            )
            raise DataError(
                f"{unknown.entry.path}: the panel '{name}' measures {num_measured} genes; `normalise='area'` {why} and needs "
                "the area of a spot: give `spot_area_um2` in a manifest, or `normalise='cpm'`"
            )
    return normalise, num_measured


def _factors(
    sample: MeasuredSample, normalise: Literal["cpm", "area"], num_cells: int = 1
) -> NDArray[np.float64]:
    """What counts of each patch are multiplied by before the logarithm."""
    if normalise == "area":
        assert sample.area_um2 is not None
        return np.full(sample.counts.shape[0], AREA_UM2 * num_cells / sample.area_um2)
    totals = np.asarray(sample.counts.astype(np.float64).sum(axis=1)).ravel()
    return np.divide(CPM, totals, out=np.zeros_like(totals), where=totals > 0)


def _log(counts: Any, factors: NDArray[np.float64]) -> Any:
    data = np.log1p(counts.data * np.repeat(factors, np.diff(counts.indptr)))
    return require("scipy.sparse").csr_matrix(
        (data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape
    )


def _genes(name: str, fitted: Sequence[MeasuredSample], num_genes: int) -> tuple[str, ...]:
    entry = fitted[0].entry
    if entry.genes is not None and not isinstance(entry.genes, int):
        genes = read_genes(entry.genes)
        anywhere = set().union(*(sample.genes for sample in fitted))
        missing = [gene for gene in genes if gene not in anywhere]
        if missing:
            raise DataError(
                f"{entry.genes}: no training sample of the panel '{name}' measures '{missing[0]}' ({len(missing)} missing); "
                "remove it from the file"
            )
        return tuple(genes)
    if entry.genes is None and fitted[0].platform == "transcripts":
        return tuple(sorted(set().union(*(sample.genes for sample in fitted))))
    everywhere = set.intersection(*(set(sample.genes) for sample in fitted))
    shared = tuple(gene for gene in fitted[0].genes if gene in everywhere)
    wanted = num_genes if entry.genes is None else entry.genes
    if not shared:
        raise DataError(
            f"{entry.path}: the training samples of the panel '{name}' have no gene in common; use the same names in all"
        )
    excess, present = _dispersion(fitted, shared)
    num_patches = sum(int(sample.measured.sum()) for sample in fitted)
    candidates = np.flatnonzero((excess > 0) & (present >= _MIN_PRESENT * num_patches))
    if not len(candidates):
        raise DataError(
            f"{entry.path}: no gene of the panel '{name}' is in {_MIN_PRESENT:.0%} of the training patches and varies; "
            "check that these are the counts of these patches, or name genes"
        )
    chosen = candidates[np.argsort(-excess[candidates], kind="stable")[:wanted]]
    return tuple(shared[index] for index in sorted(chosen.tolist()))


def _dispersion(
    samples: Sequence[MeasuredSample], genes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compares the variance of counts with that of sampling: mean square of their Pearson residuals, gene by gene.

    Expected are p n, of the patch's total n and the gene's fraction p of all counts. Logarithms would favour genes that
    are in half of the patches, with one count each, whose variance is that of sampling alone.
    Source: Lause et al., Genome Biol 22 (2021) 258, without their overdispersion.
    """
    squares, sums = np.zeros(len(genes)), np.zeros(len(genes))
    present = np.zeros(len(genes), dtype=np.int64)
    num_patches, everything = 0, 0.0
    for sample in samples:
        position = {gene: index for index, gene in enumerate(sample.genes)}
        counts = sample.counts[:, [position[gene] for gene in genes]].astype(np.float64)
        totals = np.asarray(sample.counts.sum(axis=1, dtype=np.float64)).ravel()
        of_patch = np.repeat(totals, np.diff(counts.indptr))
        squares += np.bincount(counts.indices, counts.data**2 / of_patch, len(genes))
        sums += np.bincount(counts.indices, counts.data, len(genes))
        present += np.bincount(counts.indices, minlength=len(genes))
        num_patches += int(sample.measured.sum())
        everything += float(totals.sum())
    # Σ (x - p n)² / (p n) = Σ x² / (p n) - Σ x, since p is Σ x / Σ n
    fraction = np.where(sums > 0, sums, 1) / max(everything, 1.0)
    return (squares / fraction - sums) / max(num_patches, 1), present


def _part(
    sample: MeasuredSample, genes: Sequence[str], normalise: Literal["cpm", "area"], grid: int | None = None
) -> _Part:
    """Takes the columns of genes, for each cell of the grid."""
    position = {gene: index for index, gene in enumerate(genes)}
    new = np.array([position.get(gene, -1) for gene in sample.genes])
    counts, num_cells = (sample.counts, 1) if grid is None else (sample.tokens, grid * grid)
    values = _log(counts, _factors(sample, normalise, num_cells))
    cell, gene = np.divmod(values.indices, len(sample.genes))
    kept = new[gene] >= 0
    taken = require("scipy.sparse").csr_matrix(
        (
            values.data[kept],
            cell[kept] * len(genes) + new[gene[kept]],
            np.concatenate([[0], np.cumsum(kept)])[values.indptr],
        ),
        shape=(counts.shape[0], num_cells * len(genes)),
    )
    taken.sort_indices()
    has = np.zeros(len(genes), dtype=np.bool_)
    has[new[new >= 0]] = True
    return _Part(values=taken, num_patches=int(sample.measured.sum()), has=has)


def _statistics(
    parts: Sequence[_Part], training: NDArray[np.bool_], num_cells: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Mean and deviation of each gene over training patches of samples that measure it, and whether it varies."""
    fitted = [part for part, train in zip(parts, training, strict=True) if train]
    num_genes = len(parts[0].has)
    rows = sum(part.has * (part.num_patches * num_cells) for part in fitted)
    total = sum(
        np.bincount(part.values.indices % num_genes, part.values.data.astype(np.float64), num_genes)
        for part in fitted
    )
    mean = np.divide(total, rows, out=np.zeros(num_genes), where=rows > 0)
    squares, present = np.zeros(num_genes), np.zeros(num_genes)
    for part in fitted:
        gene = part.values.indices % num_genes
        squares += np.bincount(gene, (part.values.data - mean[gene]) ** 2, num_genes)
        present += np.bincount(gene, minlength=num_genes)
    variance = np.divide(squares + (rows - present) * mean**2, rows, out=np.zeros(num_genes), where=rows > 0)
    # the targets are float32: what varies less than these resolve is constant
    varies = np.sqrt(variance) > np.finfo(np.float32).eps * np.abs(mean)
    std = np.where(varies, np.sqrt(variance), 1.0)
    return mean.astype(np.float32), std.astype(np.float32), varies


def panels_of(samples: Sequence[MeasuredSample]) -> Mapping[str, list[int]]:
    """Groups samples by panel.

    Args:
        samples: All samples.

    Returns:
        Name of the panel → numbers of its samples.
    """
    found: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        found.setdefault(sample.entry.panel_name, []).append(index)
    return found
