"""Predictions of all folds → maps of a few genes on a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort


@dataclass(frozen=True, kw_only=True)
class ExpressionMap:
    """One gene on one sample, measured and as predicted while the sample's spots were in the test part.

    Attributes:
        model: The model's label.
        protocol: The protocol.
        sample_id: The sample.
        gene: The gene.
        x: Horizontal position of each spot in px of the slide.
        y: Vertical position, downwards.
        measured: log1p counts.
        predicted: What the probe predicts.
    """

    model: str
    protocol: str
    sample_id: str
    gene: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    measured: tuple[float, ...]
    predicted: tuple[float, ...]


def genes_to_map(pcc: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """Chooses the genes that are predicted best, those first that every fold predicts.

    Args:
        pcc: Correlations by one model, (folds, genes); NaN where there is none.
        num: How many.
    """
    present = ~np.isnan(pcc)
    num_folds = present.sum(axis=0)
    mean = np.where(present, pcc, 0).sum(axis=0) / np.maximum(num_folds, 1)
    order = np.lexsort((-mean, -num_folds))
    return order[num_folds[order] > 0][:num]


def samples_to_map(num_samples: int, num: int) -> NDArray[np.int64]:
    """Chooses samples evenly spread over the cohort, so that they are not all of one study."""
    return np.unique(np.linspace(0, num_samples - 1, min(num, num_samples)).round().astype(np.int64))


def spot_maps(
    cohort: ExpressionCohort,
    label: str,
    protocol: str,
    genes: Sequence[str],
    targets: NDArray[np.float64],
    predicted: NDArray[np.float64],
    columns: NDArray[np.int64],
    samples: NDArray[np.int64],
) -> list[ExpressionMap]:
    """Takes the chosen genes and samples out of the predictions.

    Args:
        cohort: The cohort.
        label: The model's label.
        protocol: The protocol.
        genes: Gene of each column.
        targets: Measured, (N, genes).
        predicted: Predicted, (N, genes); NaN where a spot was never in a test part or the fold lacks the gene.
        columns: The genes to show.
        samples: The samples to show.

    Returns:
        One map for each sample and gene that is predicted at every spot.
    """
    maps = []
    for number in samples:
        rows = np.flatnonzero(cohort.sample_of == number)
        for gene in columns:
            if np.isnan(predicted[rows, gene]).any():
                continue
            maps.append(
                ExpressionMap(
                    model=label,
                    protocol=protocol,
                    sample_id=cohort.samples[number],
                    gene=genes[gene],
                    x=tuple(cohort.spatial[rows, 0].tolist()),
                    y=tuple(cohort.spatial[rows, 1].tolist()),
                    measured=tuple(targets[rows, gene].tolist()),
                    predicted=tuple(predicted[rows, gene].tolist()),
                )
            )
    return maps
