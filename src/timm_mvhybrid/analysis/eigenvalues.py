"""``analyse eigenvalues``: what eigenvalues the scans have, and how far they remember on real images."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.errors import EvaluationError
from ..runtime.provenance import collect_provenance
from .comparing import Values, compared
from .findings import Curves, Findings, Records
from .options import Advance, AnalysisOptions, silent
from .scan_records import ScanRecord, record_scans, tokens_of_scans
from .subjects import Instance, instances

QUANTILES = (0.05, 0.5, 0.95)
MOST_VALUES = 1 << 18
"""Of more values quantiles are taken over evenly spaced ones."""

_NOTES = (
    "Eigenvalues are −exp(A_log) (± i w where they are complex), so that their real parts are below 0 by construction; the "
    "column 'unstable' counts those that are not, as a check of that.",
    "δ, decay and memory are those on the given images, token by token: decay |a| = exp(−δ λ), memory 1/(δ λ) tokens. "
    "Quantiles are over tokens, channels and states.",
)


@torch.no_grad()
def analyse_eigenvalues(options: AnalysisOptions, *, advance: Advance = silent) -> Findings:
    """Measures eigenvalues, step sizes, decays and memories of every scan of models, on images.

    Args:
        options: Models and images.
        advance: Told of progress.

    Raises:
        EvaluationError: A model is not known, or has no scan.
        DataError: An image cannot be read.
    """
    subjects, pictures = options.open()
    rows: list[dict[str, Any]] = []
    records = []
    values: dict[tuple[str, str], dict[str, list[NDArray[np.float64]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    total = sum(options.seeds + subject.trained for subject in subjects)
    for number, instance in enumerate(instances(subjects, range(options.seeds), **options.size)):
        advance(instance.record.label, number, total)
        records.append(instance.record)
        found, memories = _layers(instance, pictures.input_of(instance.model, options.image_size_px))
        rows += found
        values[instance.subject.label, instance.kind]["log10_memory_tokens"].append(memories)
    advance("writing", total, total)
    typed: Values = values
    return Findings(
        analysis="eigenvalues",
        title="Eigenvalues and memory of the scans",
        models=records,
        tables=(
            Records(
                name="comparisons",
                caption="log10 of the median memory in tokens, paired by image; intervals over images, 95 %.",
                rows=compared(typed),
            ),
            Records(
                name="layers",
                caption="Each scan of each block: eigenvalues (per token unit of δ), δ, |a| and memory in tokens on the images; "
                "05, 50, 95: quantiles in per cent.",
                rows=rows,
            ),
        ),
        charts=_charts(rows),
        notes=(*_NOTES, f"Images: {len(pictures.images)}."),
        provenance=collect_provenance(seed=0, options=options, data=pictures.digests),
    )


def _layers(instance: Instance, images: Tensor) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    entering = tokens_of_scans(instance.model, images)
    if not entering:
        raise EvaluationError(
            f"model '{instance.subject.label}' has no state-space block, and so no eigenvalues; leave it out"
        )
    rows = []
    memories = []
    for index, (mixer, tokens) in entering.items():
        for record in record_scans(mixer, tokens):
            row, by_image = _scan_row(record)
            memories.append(by_image)
            rows.append(
                {
                    "model": instance.subject.label,
                    "weights": instance.kind,
                    "scan": record.name,
                    "seed": instance.seed,
                    "block": index,
                    **row,
                }
            )
    return rows, np.mean(memories, axis=0)


def _scan_row(record: ScanRecord) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Summarises one scan; also log10 of the median memory of each image."""
    eigenvalues = record.eigenvalues
    real = (eigenvalues.real if eigenvalues.is_complex() else eigenvalues).numpy()
    imaginary = eigenvalues.imag.numpy() if eigenvalues.is_complex() else np.zeros_like(real)
    rates = record.delta.unsqueeze(-1) * torch.as_tensor(-real)
    flat = [_thinned(one) for one in rates]
    pooled = np.concatenate(flat)
    row: dict[str, Any] = {
        "A_min": float(real.min()),
        "A_median": float(np.median(real)),
        "A_max": float(real.max()),
        "w_max": float(np.abs(imaginary).max()),
        "unstable": int((~(real < 0)).sum()),
    }
    for name, found in (
        ("delta", _thinned(record.delta)),
        ("decay", np.exp(-pooled)),
        ("memory", 1.0 / np.maximum(pooled, 1e-300)),
    ):
        for share, value in zip(QUANTILES, np.quantile(found, QUANTILES), strict=True):
            row[f"{name}_{share * 100:02.0f}"] = float(value)
    return row, np.array([-np.log10(max(float(np.median(one)), 1e-300)) for one in flat])


def _thinned(values: Tensor) -> NDArray[np.float64]:
    flat = values.reshape(-1)
    # a step that is no multiple of the number of states takes all of them in turn
    step = -(-flat.numel() // MOST_VALUES) | 1
    return np.asarray(flat[::step].numpy())


def _charts(rows: list[dict[str, Any]]) -> tuple[Curves, ...]:
    return tuple(
        Curves(
            name=name,
            curves=_by_block(rows, column, sign),
            x_label="block",
            y_label=label,
            logarithmic=logarithmic,
            caption="Median of each block; random weights by their mean over the seeds.",
        )
        for name, column, sign, label, logarithmic in (
            ("Decay rates by block", "A_median", -1.0, "−Re A", False),
            ("Step size by block", "delta_50", 1.0, "δ", True),
            ("Memory by block", "memory_50", 1.0, "1/(δ λ), tokens", True),
        )
    )


def _by_block(rows: list[dict[str, Any]], column: str, sign: float) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = f"{row['model']}, {row['weights']}" + (
            "" if row["scan"] in ("scan", "matrix") else f", {row['scan']}"
        )
        curves[name][row["block"]].append(sign * row[column])
    return {
        name: [(float(block), float(np.mean(values))) for block, values in sorted(blocks.items())]
        for name, blocks in curves.items()
    }
