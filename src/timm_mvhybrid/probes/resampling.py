"""Values of folds and genes → confidence intervals and paired comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError

NUM_RESAMPLES = 2000
LEVEL = 0.95
_ERRORS = ("mse", "mae")
# up to 2^16 sign patterns are all counted; of more, as many are drawn
_MAX_EXACT_FOLDS = 16


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Its confidence, such as 0.95.
        num_resamples: Resamples drawn.
        over: What was resampled: ``folds``, ``folds and genes``, ``queries``, ...
    """

    low: float
    high: float
    level: float
    num_resamples: int
    over: str


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One metric over the folds.

    Attributes:
        metric: ``pcc``, ``pcc10``, ``mse``, ``mae``, ``r2``, ``accuracy``, ``auroc``, ``concordance``, ...
        mean: Mean over the folds.
        std: Standard deviation over the folds.
        ddof: Delta degrees of freedom of ``std``; HEST and the paper's code use 0.
        interval: Of the mean; None where there is a single fold.
    """

    metric: str
    mean: float
    std: float
    ddof: int
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """One model against another on the same folds.

    Attributes:
        metric: The metric compared.
        protocol: The folds: ``csv``, ``random``, ``loso``; or the probe, for classification.
        model: Label of the model.
        baseline: Label of the model it is compared with, the first one given.
        difference: Mean over the folds of model − baseline; for errors, negative is better.
        interval: Of the difference.
        p_value: Two-sided, by flipping the signs of the folds' differences.
        smallest_p_value: The lowest that this number of folds can reach, 2^(1 − folds); above 0.05 nothing can be significant.
        num_folds: Folds compared.
        share_better: Fraction of the pairs (fold and gene, or fold) in which the model is better.
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


def bootstrap_interval(
    values: ArrayLike,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    over: str | None = None,
) -> Interval | None:
    """Draws folds, and genes where there are any, with replacement, and takes percentiles of the mean.

    Folds share most of their train parts and are few, so the interval tends to be too narrow.

    Args:
        values: One value for each fold, (folds,), or for each fold and gene, (folds, genes); NaN is left out.
        level: Confidence.
        num_resamples: Resamples.
        seed: Seed.
        over: What was resampled, in words; None says ``folds`` or ``folds and genes``.

    Returns:
        The interval of the mean over folds of the mean over genes; None where fewer than two folds have values.

    Raises:
        EvaluationError: If the level is not between 0 and 1, there is no resample, or values have other dimensions.
    """
    table = np.asarray(values, dtype=np.float64)
    _check_resampling(level, num_resamples)
    if table.ndim not in (1, 2):
        raise EvaluationError(f"values must be (folds,) or (folds, genes), not {table.shape}")
    if over is None:
        over = "folds" if table.ndim == 1 else "folds and genes"
    table = table.reshape(len(table), -1)
    table = table[~np.isnan(table).all(axis=1)]
    num_folds, num_genes = table.shape
    if num_folds < 2:
        return None
    rng = np.random.default_rng(seed)
    present = ~np.isnan(table)
    filled = np.where(present, table, 0.0)
    # how often each gene and fold is drawn, instead of the drawn table: one product for all resamples
    genes = rng.multinomial(num_genes, np.full(num_genes, 1 / num_genes), size=num_resamples)
    if num_genes == 1:
        genes = np.ones((num_resamples, 1), dtype=np.int64)
    folds = rng.multinomial(num_folds, np.full(num_folds, 1 / num_folds), size=num_resamples)
    sums, counts = genes @ filled.T, genes @ present.T
    fold_means = np.divide(sums, counts, out=np.zeros(sums.shape), where=counts > 0)
    weights = folds * (counts > 0)
    total = weights.sum(axis=1)
    means = (weights * fold_means).sum(axis=1)[total > 0] / total[total > 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level, num_resamples=num_resamples, over=over)


def correlation_interval(
    correlations: ArrayLike,
    num_items: ArrayLike,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Resamples a mean of correlations on two levels: studies with replacement, and each one's correlation about itself.

    A resample of two studies alone would take the lower of both as the lower end, and so call a quarter of all columns of
    noise positive. Each correlation drawn is therefore drawn again from tanh(artanh r + ε / √(n − 3)), ε normal, which is
    how the correlation of n items scatters. Neighbouring spots are alike, and studies few, so that the interval tends to
    be too narrow all the same.

    Source: Fisher's z-transform; bootstrap of clusters and within clusters, Davison & Hinkley, *Bootstrap Methods and
    their Application* (1997), section 3.8.

    Args:
        correlations: One for each study, (studies,); NaN is left out.
        num_items: Items that each is of, (studies,).
        level: Confidence.
        num_resamples: Resamples.
        seed: Seed.

    Returns:
        The interval of the mean; None where fewer than two studies have a correlation.

    Raises:
        EvaluationError: If the level is not between 0 and 1, there is no resample, or lengths differ.
    """
    r, n = (np.asarray(x, dtype=np.float64) for x in (correlations, num_items))
    _check_resampling(level, num_resamples)
    if r.ndim != 1 or r.shape != n.shape:
        raise EvaluationError(
            f"correlations and num_items must be (studies,) both, not {r.shape} and {n.shape}"
        )
    r, n = r[~np.isnan(r)], n[~np.isnan(r)]
    if len(r) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(r), size=(num_resamples, len(r)))
    # a correlation of three items says nothing, and one of exactly 1 has no transform
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    deviation = 1 / np.sqrt(np.maximum(n - 3, 0.1))
    noise = rng.standard_normal(drawn.shape)
    means = np.tanh(z[drawn] + deviation[drawn] * noise).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        low=float(low),
        high=float(high),
        level=level,
        num_resamples=num_resamples,
        over="studies and spots",
    )


def _check_resampling(level: float, num_resamples: int) -> None:
    if not 0 < level < 1 or num_resamples < 1:
        raise EvaluationError(
            f"`level` must lie between 0 and 1, not {level}, and `num_resamples` be at least 1, not {num_resamples}"
        )


def summarise(
    metric: str,
    fold_values: ArrayLike,
    *,
    gene_values: ArrayLike | None = None,
    ddof: int = 0,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> MetricSummary:
    """Takes mean, deviation and interval of a metric over folds; a NaN makes mean and deviation NaN.

    With ``gene_values``, (folds, genes), whose means over genes are the fold values, genes are resampled too.
    """
    values = np.asarray(fold_values, dtype=np.float64)
    # a single fold has no deviation with ddof 1
    std = float(values.std(ddof=ddof)) if len(values) > ddof else math.nan
    interval = None
    if not np.isnan(values).any():
        table = values if gene_values is None else np.asarray(gene_values, dtype=np.float64)
        interval = bootstrap_interval(table, seed=seed, num_resamples=num_resamples)
    return MetricSummary(metric=metric, mean=float(values.mean()), std=std, ddof=ddof, interval=interval)


def compare_paired(
    values: ArrayLike,
    baseline_values: ArrayLike,
    *,
    metric: str = "pcc",
    higher: bool | None = None,
    protocol: str = "",
    model: str = "model",
    baseline: str = "baseline",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedComparison:
    """Compares two models on the same folds and genes.

    The p-value flips the signs of whole folds, because the genes of a fold share its spots and are not independent. With
    f folds it cannot fall below 2^(1 − f): five folds never reach 0.05.

    Args:
        values: Of the model, (folds,) or (folds, genes); NaN where either has none is left out of both.
        baseline_values: Of the model to compare with, of the same shape.
        metric: Its name.
        higher: Whether higher is better; None takes ``mse`` and ``mae`` as errors, and all others as better when higher.
        protocol: Names the folds.
        model: Label.
        baseline: Label.
        seed: Seed of the bootstrap.
        num_resamples: Resamples of the bootstrap.

    Returns:
        Mean difference, interval and p-value; all NaN where no fold has both values.

    Raises:
        EvaluationError: If the shapes differ.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline_values, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim not in (1, 2):
        raise EvaluationError(
            f"a paired comparison needs the same folds and genes: {model} has {ours.shape}, {baseline} {theirs.shape}"
        )
    difference = ours - theirs
    table = difference.reshape(len(difference), -1)
    table = table[~np.isnan(table).all(axis=1)]
    fold_differences = np.nanmean(table, axis=1) if len(table) else np.empty(0)
    better = table[~np.isnan(table)]
    if not (metric not in _ERRORS if higher is None else higher):
        better = -better
    # half of a draw counts for each side, so that a model against itself gets one half
    fraction = float(np.mean((better > 0) + 0.5 * (better == 0))) if len(better) else math.nan
    return PairedComparison(
        metric=metric,
        protocol=protocol,
        model=model,
        baseline=baseline,
        difference=float(fold_differences.mean()) if len(table) else math.nan,
        interval=bootstrap_interval(difference, seed=seed, num_resamples=num_resamples),
        p_value=_sign_flip_p_value(fold_differences, seed),
        smallest_p_value=2.0 ** (1 - len(table)) if len(table) else math.nan,
        num_folds=len(table),
        share_better=fraction,
    )


def _sign_flip_p_value(differences: NDArray[np.float64], seed: int) -> float:
    num = len(differences)
    if num == 0:
        return math.nan
    observed = abs(differences.sum())
    # sums in another order differ by rounding; what equals the observed sum must count
    bound = observed - 1e-12 * np.abs(differences).sum()
    if num <= _MAX_EXACT_FOLDS:
        signs = np.array(list(product((1.0, -1.0), repeat=num - 1))).reshape(2 ** (num - 1), num - 1)
        sums = differences[0] + signs @ differences[1:]
        return float(np.mean(np.abs(sums) >= bound))
    drawn = np.random.default_rng(seed).choice((-1.0, 1.0), size=(2**_MAX_EXACT_FOLDS, num))
    return float((1 + np.sum(np.abs(drawn @ differences) >= bound)) / (1 + len(drawn)))
