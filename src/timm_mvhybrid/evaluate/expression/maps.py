"""Predicted and measured expression on slides: maps → the page's section that draws the chosen one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ...report.page import json_element
from .spot_maps import ExpressionMap


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
