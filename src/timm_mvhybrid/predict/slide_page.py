"""Predictions on a slide → one page that needs nothing else: map over the slide, genes with their reliability."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..report.page import page, section, standing_warnings
from ..report.slide_map import PART, SlideMap, slide_map_section
from ..report.table import Table, number_cell, text_cell, to_html
from ..runtime.provenance import collect_provenance
from .slide_prediction import SlidePrediction

_LARGE_FAR = 0.2
"""Fraction of far patches from which the page warns; of left-out studies a few percent are."""


def slide_page(
    found: SlidePrediction, columns: NDArray[np.int64], measured: NDArray[np.float32] | None = None
) -> str:
    """Writes the page.

    Args:
        found: The predictions.
        columns: Genes to show, as columns of the prediction.
        measured: What was measured at the patches, (patches, genes) in the prediction's columns, where that is known.
    """
    predictor, prediction = found.predictor, found.prediction
    encoder, reliability = predictor.encoder_, predictor.reliability_
    genes = [predictor.genes_[column] for column in columns]
    name = "an unnamed model" if encoder is None else encoder.name
    shown = SlideMap(
        picture=found.picture,
        dimensions_px=found.dimensions_px,
        corners=found.corners,
        cell_px=found.stride_level0,
        genes=genes,
        columns=columns,
        mean=prediction.mean,
        lower=prediction.lower,
        upper=prediction.upper,
        r=reliability.r[columns],
        r_lower=reliability.lower[columns],
        r_upper=reliability.upper[columns],
        predictable=reliability.predictable[columns],
        distance=prediction.distance,
        far=prediction.far,
        measured=measured,
        r_note=f"({reliability.level:.0%} interval, over {len(predictor.studies_)} left-out studies)",
    )
    provenance = {"Prediction": collect_provenance(seed=0, options=found.record, data={})}
    if predictor.provenance_ is not None:
        provenance["Predictor"] = predictor.provenance_
    is_random = encoder is not None and encoder.weights == "random"
    is_generated = predictor.provenance_ is not None and predictor.provenance_.generated
    side, stride = (length * found.um_per_px for length in (found.patch_size_level0, found.stride_level0))
    apart = "" if found.stride_level0 == found.patch_size_level0 else f", {stride:.0f} µm apart"
    lead = (
        f"{len(found.coords):,} patches of {side:.0f} µm{apart}; features of {name}; {len(genes)} of "
        f"{len(predictor.genes_):,} genes"
    )
    level = (found.record.get("options") or {}).get("level") or predictor.level
    hint = (
        f"{'Predicted, not measured' if measured is None else 'Predicted beside what was measured'}; the bounds aim to cover {level:.0%} of what would be measured. r is the correlation of predicted with measured expression in studies that were left out "
        f"of the fit. Hatched patches lie farther from the training data than {predictor.far_level:.0%} of those of left-out studies: "
        "their intervals promise nothing."
    )
    return page(
        title=f"Predicted expression: {found.name}",
        lead=lead,
        warnings=[
            *standing_warnings(
                generated=["the predictor's training data"] if is_generated else [],
                random=[name] if is_random else [],
            ),
            *_doubts(found, columns),
        ],
        notes=[],
        sections=[
            section("Map", slide_map_section(shown), hint),
            section("Genes", to_html(_table(found, columns))),
        ],
        provenance=provenance,
        footer=f"The same numbers stand in {found.name}.h5ad, unrounded.",
        parts=[PART],
    )


def _doubts(found: SlidePrediction, columns: NDArray[np.int64]) -> list[str]:
    """Words what makes the whole slide or all genes doubtful."""
    doubts = []
    far = float(found.prediction.far.mean())
    if far > _LARGE_FAR:
        doubts.append(
            f"{far:.0%} of the patches lie far from the training data: another stain, scanner or tissue? Intervals do not "
            "hold there."
        )
    if not found.predictor.reliability_.predictable[columns].any():
        doubts.append(
            "None of these genes was predicted in left-out studies: every interval of r includes 0."
        )
    return doubts


def _table(found: SlidePrediction, columns: NDArray[np.int64]) -> Table:
    reliability, prediction = found.predictor.reliability_, found.prediction

    def half_width(gene: int) -> float:
        return float((prediction.upper[:, gene] - prediction.lower[:, gene]).mean()) / 2

    order = columns[np.argsort(-reliability.r[columns], kind="stable")]
    return Table.of(
        "genes",
        "Every gene shown: correlation in left-out studies with its interval, and what is predicted on this slide, in log1p "
        "counts.",
        order.tolist(),
        [
            ("Gene", lambda gene: text_cell(found.predictor.genes_[gene])),
            ("Can be predicted", lambda gene: text_cell("yes" if reliability.predictable[gene] else "no")),
            ("r", lambda gene: number_cell(float(reliability.r[gene]), 2)),
            ("from", lambda gene: number_cell(float(reliability.lower[gene]), 2)),
            ("to", lambda gene: number_cell(float(reliability.upper[gene]), 2)),
            ("Mean", lambda gene: number_cell(float(prediction.mean[:, gene].mean()), 2)),
            ("Deviation", lambda gene: number_cell(float(prediction.mean[:, gene].std()), 2)),
            ("Interval ±", lambda gene: number_cell(half_width(gene), 2)),
        ],
        num_text_columns=2,
    )
