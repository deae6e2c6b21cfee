"""Values by image of several models → paired differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..probes.resampling import bootstrap_interval, compare_paired

Values = Mapping[tuple[str, str], Mapping[str, Sequence[NDArray[np.float64]]]]
"""(subject, kind) → metric → values by image, one array a set of weights."""


def compared(values: Values, *, seed: int = 0) -> list[dict[str, Any]]:
    """Compares trained weights with random ones of the same architecture, and each model with the first, image by image.

    Random weights count by their mean over the seeds. The interval resamples images; it does not say how weights of other
    seeds would differ, which ``seeds_std`` does.

    Returns:
        A row for each pair and metric.
    """
    subjects = list(dict.fromkeys(subject for subject, _ in values))
    pairs = [((subject, "trained"), (subject, "random")) for subject in subjects]
    pairs += [
        ((subject, kind), (subjects[0], kind)) for kind in ("trained", "random") for subject in subjects[1:]
    ]
    rows = []
    for model, baseline in pairs:
        if model not in values or baseline not in values:
            continue
        for metric in values[model]:
            if metric not in values[baseline]:
                continue
            ours, theirs = (np.mean(values[key][metric], axis=0) for key in (model, baseline))
            found = compare_paired(
                ours, theirs, metric=metric, model=", ".join(model), baseline=", ".join(baseline), seed=seed
            )
            spread = [float(np.mean(one)) for one in values[baseline][metric]]
            rows.append(
                {
                    "model": found.model,
                    "baseline": found.baseline,
                    "metric": metric,
                    "difference": found.difference,
                    "low": float("nan") if found.interval is None else found.interval.low,
                    "high": float("nan") if found.interval is None else found.interval.high,
                    "p_value": found.p_value,
                    "images": found.num_folds,
                    "seeds_std": float(np.std(spread, ddof=1)) if len(spread) > 1 else float("nan"),
                }
            )
    return rows


def summarised(values: Values, *, seed: int = 0) -> list[dict[str, Any]]:
    """Takes means over images and seeds, with an interval over images."""
    rows = []
    for (subject, kind), metrics in values.items():
        for metric, found in metrics.items():
            by_image = np.mean(found, axis=0)
            interval = bootstrap_interval(by_image, seed=seed, over="images")
            rows.append(
                {
                    "model": subject,
                    "weights": kind,
                    "metric": metric,
                    "mean": float(np.nanmean(by_image)),
                    "low": float("nan") if interval is None else interval.low,
                    "high": float("nan") if interval is None else interval.high,
                    "seeds": len(found),
                    "images": len(by_image),
                }
            )
    return rows
