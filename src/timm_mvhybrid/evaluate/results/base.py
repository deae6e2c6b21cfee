"""What every task's result holds: models, paired comparisons, provenance, and its way to a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...runtime.atomic_file import write_file
from .json_codec import dump

SCHEMA_VERSION = 1
"""Raised whenever a field changes its meaning."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap confidence interval.

    Args:
        low: Lower end.
        high: Upper end.
        level: Its confidence, such as 0.95.
        num_resamples: Resamples drawn.
        over: What was resampled: `folds`, `folds and genes`, `queries`, ...
    """

    low: float
    high: float
    level: float
    num_resamples: int
    over: str


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One metric over the folds.

    Args:
        metric: `pcc`, `pcc10`, `mse`, `mae`, `r2`, `accuracy`, `auroc`, `concordance`, ...
        mean: Mean over the folds.
        std: Standard deviation over the folds.
        ddof: Delta degrees of freedom of `std`; HEST and the paper's code use 0.
        interval: Of the mean; None where a single fold leaves nothing to resample.
    """

    metric: str
    mean: float
    std: float
    ddof: int
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """One model against another on the same folds.

    Args:
        metric: The metric compared.
        protocol: The folds: `csv`, `random`, `loso`; or the probe, for classification.
        model: Label of the model.
        baseline: Label of the model it is compared with, the first one given.
        difference: Mean over the folds of model − baseline; for errors, negative is better.
        interval: Of the difference.
        p_value: Two-sided, by flipping the signs of the folds' differences.
        smallest_p_value: What as many folds can reach at best, 2^(1 − folds); above 0.05 nothing can be significant.
        num_folds: Folds compared.
        share_better: Share of the pairs (fold and gene, or fold) in which the model is better.
    """

    metric: str
    protocol: str
    model: str
    baseline: str
    difference: float
    interval: Interval | None
    p_value: float
    smallest_p_value: float
    num_folds: int
    share_better: float


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A backbone, its weights and how it embedded.

    Args:
        label: Names it within the result, unique.
        name: Its timm name.
        weights: `random`, `pretrained` or the checkpoint's file name.
        weights_sha256: SHA-256 of the weights' file; of the tensors themselves where there is no file.
        embedding_dim: Length of an embedding.
        transform: Input size, normalisation, pooling, dtype: what the cache is keyed by beside the weights.
        num_patches: Patches embedded or taken from the cache.
        num_cached: Those taken from the cache.
        seconds: Time spent embedding, summed over files and ranks; 0 if all came from the cache.
        data_wait_share: Share of it spent waiting for patches; NaN if all came from the cache.
    """

    label: str
    name: str
    weights: str
    weights_sha256: str
    embedding_dim: int
    transform: dict[str, Any] = field(default_factory=dict)
    num_patches: int = 0
    num_cached: int = 0
    seconds: float = 0.0
    data_wait_share: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is needed to get the same numbers again.

    Args:
        created: UTC time, ISO 8601.
        seed: Seed of random folds, bootstrap and random weights.
        options: All options as resolved.
        versions: Package → version.
        data: File relative to the input's root → SHA-256.
        generated: Whether the data say of themselves that they were generated, not measured.
        platform: Operating system and processor.
    """

    created: str
    seed: int
    options: dict[str, Any]
    versions: dict[str, str]
    data: dict[str, str]
    generated: bool
    platform: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every task's result has.

    Args:
        dataset: Name of the data, the input folder's or file's by default.
        models: The backbones in the order given.
        comparisons: Every later model against the first.
        provenance: Where the numbers come from.
        notes: What a reader has to know, one sentence each, such as genes that are constant in a fold.
    """

    task: ClassVar[str] = ""

    dataset: str
    models: tuple[ModelRecord, ...]
    comparisons: tuple[PairedComparison, ...]
    provenance: Provenance
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Encodes the result.

        Returns:
            Strict JSON, one line for each field.
        """
        body = dump(self)
        return f'{{\n"schema": {SCHEMA_VERSION},\n"task": {json.dumps(self.task)},\n{body[2:]}'

    def write(self, path: str | Path) -> None:
        """Writes the file, complete or not at all.

        Args:
            path: Where, such as `DIR/results.json`.

        Raises:
            OutputError: If the disk does not take it.
        """
        write_file(path, self.to_json())
