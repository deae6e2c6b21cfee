"""``metrics.jsonl`` of a run → curves of its numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import PretrainError
from .metrics_log import read_lines
from .run_directory import RunDirectory

_BOOKKEEPING = re.compile(r"step|time|epoch")


@dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Attributes:
        run: Label of the run.
        name: The metric.
        steps: (N,), rising.
        values: (N,), NaN where there is no number.
        breaks: Steps at which the value was NaN or infinite.
    """

    run: str
    name: str
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    breaks: NDArray[np.float64]


def read_curves(run: RunDirectory, label: str) -> list[Curve]:
    """Reads the numbers of a run's log.

    Returns:
        A curve for each metric that is a number in some line, in the order of their first lines.

    Raises:
        PretrainError: The log is missing, damaged or holds no numbers.
    """
    if not run.metrics.is_file():
        raise PretrainError(f"{run.metrics}: no such log; give the folder of a run")
    points: dict[str, dict[int, float]] = {}
    for line in read_lines(run.metrics):
        for name, value in line.items():
            if _BOOKKEEPING.fullmatch(name) or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            points.setdefault(name, {})[line["step"]] = float(value)
    if not points:
        raise PretrainError(f"{run.metrics}: holds no numbers yet; wait for the run's first lines")
    curves = []
    for name, by_step in points.items():
        steps = np.array(sorted(by_step), dtype=np.float64)
        values = np.array([by_step[int(step)] for step in steps])
        finite = np.isfinite(values)
        curves.append(Curve(label, name, steps, np.where(finite, values, np.nan), steps[~finite]))
    return curves


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Averages each value with its neighbours on both sides; at the ends there are fewer.

    Args:
        values: (N,); NaN stays NaN and counts in no average.
        window: Number of values, rounded up to an odd one.

    Returns:
        (N,).
    """
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    averages = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(known, averages, np.nan)


def run_labels(paths: Sequence[Path]) -> list[str]:
    """Names runs by their folders, and by as many of the folders above as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]
