"""Expression of all that samples measure → scores of pathways of every patch, standardised from training patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cohorts.gene_sets import GeneSets, read_gmt
from ..cohorts.pathways import PathwayMethod, PathwayScores, pathway_scores
from ..runtime.errors import DataError
from ..runtime.extras import require
from .measured import MeasuredSample
from .panels import Panel, log_expression


@dataclass(frozen=True, eq=False, kw_only=True)
class PathwayTargets:
    """Scores of pathways.

    Attributes:
        names: Sets that at least one panel can score, in the order of the file.
        values: For each sample, (patches, sets) float32, standardised within its panel; 0 where not measured.
        measured: For each sample, (patches, sets) bool.
        mean: Panel → mean of the scores over its training patches, (sets,); NaN for sets that it cannot score.
        std: Panel → their population deviation, likewise.
        coverage: Panel → fraction of each set's genes that it measures, (sets,); NaN likewise.
        unscored: Panel → why it has no scores at all.
        method: How patches were scored.
    """

    names: tuple[str, ...]
    values: tuple[NDArray[np.float32], ...]
    measured: tuple[NDArray[np.bool_], ...]
    mean: dict[str, NDArray[np.float64]]
    std: dict[str, NDArray[np.float64]]
    coverage: dict[str, NDArray[np.float64]]
    unscored: dict[str, str]
    method: PathwayMethod


def score_pathways(
    samples: Sequence[MeasuredSample],
    panels: Mapping[str, tuple[Panel, Sequence[int]]],
    training: NDArray[np.bool_],
    gene_sets: GeneSets,
    *,
    method: PathwayMethod = "mean_z",
    min_genes: int = 5,
    ignore_case: bool = False,
) -> PathwayTargets:
    """Scores every patch of every sample.

    A panel's samples are scored on the genes that all of them measure, normalised as the panel is. Scores are
    standardised within each panel, because a set is another mean of other genes there.

    Args:
        samples: All samples.
        panels: Name → panel, and the numbers of its samples.
        training: Which samples are trained on, (samples,).
        gene_sets: The sets, or the path of a GMT file.
        method: See ``pathway_scores``.
        min_genes: Distinct measured genes that a set needs.
        ignore_case: Whether ``Actb`` and ``ACTB`` are one gene.

    Returns:
        The scores.

    Raises:
        DataError: If no panel can score a set; the message is that of the first.
    """
    found: dict[str, PathwayScores] = {}
    problems: dict[str, DataError] = {}
    for name, (panel, numbers) in panels.items():
        try:
            found[name] = _scores(
                [samples[index] for index in numbers],
                training[list(numbers)],
                panel,
                gene_sets,
                method=method,
                min_genes=min_genes,
                ignore_case=ignore_case,
            )
        except DataError as error:
            problems[name] = error
    if not found:
        raise next(iter(problems.values()))
    order = read_gmt(gene_sets) if isinstance(gene_sets, str | Path) else gene_sets
    scored = set().union(*(scores.names for scores in found.values()))
    names = tuple(name for name in order if name in scored)
    values = [np.zeros((len(sample.source), len(names)), np.float32) for sample in samples]
    measured = [np.zeros((len(sample.source), len(names)), np.bool_) for sample in samples]
    statistics: dict[str, dict[str, NDArray[np.float64]]] = {"mean": {}, "std": {}, "coverage": {}}
    for name, scores in found.items():
        _, numbers = panels[name]
        columns = np.array([names.index(pathway) for pathway in scores.names])
        lengths = [len(samples[index].source) for index in numbers]
        train = np.repeat(training[list(numbers)], lengths) & scores.measured
        mean, std = scores.values[train].mean(axis=0), scores.values[train].std(axis=0)
        varies = std > np.finfo(np.float32).eps * np.abs(mean)
        standard = (scores.values - mean) / np.where(varies, std, 1.0)
        ok = scores.measured[:, None] & varies
        for index, rows in zip(
            numbers, np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1]), strict=True
        ):
            values[index][:, columns] = np.where(ok[rows], standard[rows], 0.0)
            measured[index][:, columns] = ok[rows]
        for kind, numbers_of in (("mean", mean), ("std", std), ("coverage", scores.coverage)):
            statistics[kind][name] = np.full(len(names), np.nan)
            statistics[kind][name][columns] = numbers_of
    return PathwayTargets(
        names=names,
        values=tuple(values),
        measured=tuple(measured),
        unscored={name: str(error) for name, error in problems.items()},
        method=method,
        **statistics,
    )


def _scores(
    samples: Sequence[MeasuredSample],
    training: NDArray[np.bool_],
    panel: Panel,
    gene_sets: GeneSets,
    **options: Any,
) -> PathwayScores:
    everywhere = set.intersection(*(set(sample.genes) for sample in samples))
    genes = [gene for gene in samples[0].genes if gene in everywhere]
    if not genes:
        raise DataError(
            f"the samples of the panel '{panel.name}' have no gene in common; use the same names in all"
        )
    stacked = []
    for sample in samples:
        position = {gene: index for index, gene in enumerate(sample.genes)}
        stacked.append(log_expression(sample, panel.normalise)[:, [position[gene] for gene in genes]])
    rows = np.repeat(training, [len(sample.source) for sample in samples])
    if options["method"] == "mean_z":
        options = {**options, "train": rows}
    return pathway_scores(
        require("scipy.sparse").vstack(stacked, format="csr"), genes, gene_sets, normalise=False, **options
    )
