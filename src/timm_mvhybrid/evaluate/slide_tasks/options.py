"""Options of the tasks on slides, and what these share: models one after the other, comparisons, provenance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...cohorts.bags import SlideTable, bag_folder, read_bags
from ...probes.attention_mil import AttentionOptions
from ...probes.resampling import PairedComparison, compare_paired
from ...runtime.digest import file_sha256
from ...runtime.errors import EvaluationError
from ...runtime.provenance import ModelRecord, Provenance, collect_provenance

Scores = TypeVar("Scores")
Bags = list[NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class SlideTaskOptions:
    """Slide classification and survival.

    Args:
        positive_label: The label counted as positive; None takes the rarer one.
        num_folds: Folds over patients.
        attention: Training of the attention model.
        num_prototypes: Of the mixture embedding.
        num_iters: Of the mixture embedding.
        tau: Of the mixture embedding.
        eps: Of the mixture embedding.
        cox_alpha: Ridge penalty of the Cox model.
        time_unit: Unit of the times, such as months; for the report.
        ddof: Delta degrees of freedom of deviations over folds.
        seed: Seed of folds, prototypes, training and bootstrap.
    """

    positive_label: str | None = None
    num_folds: int = 5
    attention: AttentionOptions = field(default_factory=AttentionOptions)
    num_prototypes: int = 16
    num_iters: int = 1
    tau: float = 1.0
    eps: float = 1.0
    cox_alpha: float = 1.0
    time_unit: str = ""
    ddof: int = 0
    seed: int = 0


def score_each(
    folders: Sequence[str | Path], table: SlideTable, score: Callable[[str, Bags], Scores]
) -> tuple[list[Scores], list[ModelRecord], dict[str, str]]:
    """Reads the embeddings of every model and scores them.

    Args:
        folders: Embeddings by one model each.
        table: The slides.
        score: Takes a model's label and its bags.

    Returns:
        Scores, records of the models, and file → SHA-256.

    Raises:
        EvaluationError: If there is no folder, or two have the same name.
    """
    if not folders:
        raise EvaluationError("no embeddings to evaluate; name a folder of h5 files")
    scores: list[Scores] = []
    records: list[ModelRecord] = []
    digests: dict[str, str] = {}
    for folder in folders:
        bags, record = read_bags(folder, table.slides)
        if any(other.label == record.label for other in records):
            raise EvaluationError(
                f"two folders are named '{record.label}'; rename one, for names label the models"
            )
        for slide in table.slides:
            digests[f"{record.label}/{slide}.h5"] = file_sha256(bag_folder(folder) / f"{slide}.h5")
        scores.append(score(record.label, bags))
        records.append(record)
    return scores, records, digests


def compare_folds(
    model_values: Sequence[tuple[str, Sequence[float]]], metric: str, seed: int
) -> tuple[PairedComparison, ...]:
    """Compares every later model with the first, fold by fold.

    Args:
        model_values: Label and one value for each fold.
        metric: Its name.
        seed: Seed of the bootstrap.

    Returns:
        The comparisons.
    """
    baseline, baseline_values = model_values[0]
    return tuple(
        compare_paired(
            values,
            baseline_values,
            metric=metric,
            protocol="patient",
            model=label,
            baseline=baseline,
            seed=seed,
        )
        for label, values in model_values[1:]
    )


def slides_provenance(table: SlideTable, digests: dict[str, str], options: SlideTaskOptions) -> Provenance:
    """Collects where a result comes from.

    Args:
        table: The slides' table.
        digests: File → SHA-256 of the embeddings.
        options: Options of the run.

    Returns:
        The provenance.
    """
    data = {table.path.name: file_sha256(table.path), **digests}
    return collect_provenance(seed=options.seed, options=options, data=data)
