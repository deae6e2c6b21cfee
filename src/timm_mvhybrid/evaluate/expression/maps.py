"""Predictions of all folds → maps of a few genes on a few samples → the page's section that draws the chosen one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort
from ...report.page import json_element


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
    """Chooses the genes with the best correlations, (folds, genes), those first that every fold predicts."""
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
    """Takes the chosen genes (columns) and samples (numbers) out of targets and predictions, (N, genes) each.

    Returns:
        One map for each sample and gene that is predicted at every spot: NaN is where a spot was never in a test part,
        or the fold lacks the gene.
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


def maps_section(
    maps: Sequence[ExpressionMap], protocols: Mapping[str, str], *, stretched: bool = False
) -> str:
    """Writes the choice of gene, sample and folds, and their data.

    Returns:
        HTML without a frame; the page's script draws the pictures.
    """
    choices = "".join(
        _choice(name, text, values)
        for name, text, values in (
            ("gene", "Gene", [(gene, gene) for gene in _distinct(one.gene for one in maps)]),
            ("sample", "Sample", [(sample, sample) for sample in _distinct(one.sample_id for one in maps)]),
            (
                "protocol",
                "Folds",
                [(name, protocols.get(name, name)) for name in _distinct(one.protocol for one in maps)],
            ),
        )
    )
    return f"""<div class="controls">{choices}
<button type="button" id="map-previous">Previous gene</button><button type="button" id="map-next">Next gene</button>
<label class="check"><input type="checkbox" id="map-own"{" checked" if stretched else ""}> stretch colours of each prediction</label></div>
<figure data-plot="maps"><div class="maps" id="map-panels" aria-live="polite"></div></figure>
{json_element("map-data", [_values(one) for one in maps])}"""


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _choice(name: str, text: str, values: list[tuple[str, str]]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(shown)}</option>' for value, shown in values)
    return f'<label>{text}<select id="map-{name}">{options}</select></label>'


def _values(one: ExpressionMap) -> dict[str, Any]:
    return {
        "model": one.model,
        "protocol": one.protocol,
        "sample": one.sample_id,
        "gene": one.gene,
        "x": _rounded(one.x, 1),
        "y": _rounded(one.y, 1),
        "measured": _rounded(one.measured, 3),
        "predicted": _rounded(one.predicted, 3),
        "pcc": _correlation(one.measured, one.predicted),
    }


def _rounded(values: tuple[float, ...], digits: int) -> list[float | None]:
    return [round(value, digits) if np.isfinite(value) else None for value in values]


def _correlation(measured: tuple[float, ...], predicted: tuple[float, ...]) -> float | None:
    first, second = np.asarray(measured), np.asarray(predicted)
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return round(float(np.corrcoef(first, second)[0, 1]), 4)
