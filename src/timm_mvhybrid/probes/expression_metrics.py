"""Measured and predicted expression → correlations and errors, per gene and over genes; drops between protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import EvaluationError
from .arrays import check_choice, finite_matrix

NanPolicy = Literal["omit", "propagate", "zero"]
METRICS = ("pcc", "pcc10", "mse", "mae", "r2")
ERROR_METRICS = ("mse", "mae")
_NUM_BEST = 10
# below this fraction of the mean, the variation is rounding; SciPy's pearsonr warns at the same bound
_NEARLY_CONSTANT = 1e-13


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpressionMetrics:
    """How well genes are predicted in one fold.

    Attributes:
        pcc: Mean Pearson correlation over the genes.
        pcc10: Mean of the ten highest correlations (of all, if there are fewer).
        mse: Mean squared error, mean over the genes.
        mae: Mean absolute error, mean over the genes.
        r2: Coefficient of determination, mean over the genes.
        pcc_per_gene: (genes,) float64; NaN where measurement or prediction is constant, whatever the policy.
        mse_per_gene: (genes,) float64.
        mae_per_gene: (genes,) float64.
        r2_per_gene: (genes,) float64; NaN where the measurement is constant.
        num_constant: Genes without a correlation.
        nan_policy: How they enter the means.
    """

    pcc: float
    pcc10: float
    mse: float
    mae: float
    r2: float
    pcc_per_gene: NDArray[np.float64]
    mse_per_gene: NDArray[np.float64]
    mae_per_gene: NDArray[np.float64]
    r2_per_gene: NDArray[np.float64]
    num_constant: int
    nan_policy: NanPolicy


def expression_metrics(
    y: ArrayLike, prediction: ArrayLike, nan_policy: NanPolicy = "omit"
) -> ExpressionMetrics:
    """Compares measured with predicted expression.

    A gene that is constant over the spots, measured or predicted, has no correlation, and one measured as constant
    has no R². ``omit`` leaves such genes out of the means, ``propagate`` makes the means NaN, as HEST's code does,
    and ``zero`` counts them as 0.

    Args:
        y: Measured, (spots, genes), such as log1p counts.
        prediction: Of the same shape and unit.
        nan_policy: How genes without a correlation enter the means.

    Raises:
        EvaluationError: If shapes differ, values are not finite or the policy is unknown.
    """
    check_choice("nan_policy", nan_policy, NanPolicy)
    y = finite_matrix("y", y, np.float64)
    prediction = finite_matrix("prediction", prediction, np.float64)
    if y.shape != prediction.shape:
        raise EvaluationError(f"y has the shape {y.shape}, prediction {prediction.shape}; they must agree")
    error = prediction - y
    mse = np.square(error).mean(axis=0)
    y_centred, prediction_centred = y - y.mean(axis=0), prediction - prediction.mean(axis=0)
    y_norm, prediction_norm = (np.linalg.norm(centred, axis=0) for centred in (y_centred, prediction_centred))
    y_constant, prediction_constant = _is_constant(y, y_norm), _is_constant(prediction, prediction_norm)
    num_spots = len(y)
    pcc = np.full(y.shape[1], np.nan)
    varies = ~(y_constant | prediction_constant)
    # normalised before the product, so that neither tiny nor huge values leave the range of float64
    pcc[varies] = np.sum(
        (y_centred[:, varies] / y_norm[varies]) * (prediction_centred[:, varies] / prediction_norm[varies]),
        axis=0,
    ).clip(-1, 1)
    r2 = np.full(y.shape[1], np.nan)
    r2[~y_constant] = 1 - mse[~y_constant] * num_spots / np.square(y_norm[~y_constant])
    counted = _counted(pcc, nan_policy)
    best = np.sort(counted)[::-1][:_NUM_BEST] if np.isfinite(counted).all() else counted
    mae = np.abs(error).mean(axis=0)
    return ExpressionMetrics(
        pcc=_mean(counted),
        pcc10=_mean(best),
        mse=float(mse.mean()),
        mae=float(mae.mean()),
        r2=_mean(_counted(r2, nan_policy)),
        pcc_per_gene=pcc,
        mse_per_gene=mse,
        mae_per_gene=mae,
        r2_per_gene=r2,
        num_constant=int((~varies).sum()),
        nan_policy=nan_policy,
    )


def mean_correlation(correlations: NDArray[np.float64], nan_policy: NanPolicy) -> float:
    """Averages correlations of genes, (genes,), some of which may be NaN, as ``expression_metrics`` does for all genes."""
    return _mean(_counted(correlations, nan_policy))


def drop_percent(random: float, loso: float, metric: str = "pcc") -> float | None:
    """Computes how much worse left-out studies are than random folds.

    Args:
        random: Mean over random folds.
        loso: Mean over left-out studies.
        metric: ``mse`` and ``mae`` are errors, whose rise counts; all others are scores, whose fall counts.

    Returns:
        (random − loso) / random for scores, (loso − random) / random for errors, in percent; None where ``random`` is
        not above 0 or one of them is NaN, because the ratio then means nothing.
    """
    if not random > 0 or np.isnan(loso):
        return None
    fall = loso - random if metric.lower() in ERROR_METRICS else random - loso
    return float(100 * fall / random)


def drop_percentages(random: Mapping[str, float], loso: Mapping[str, float]) -> dict[str, float | None]:
    """Applies ``drop_percent`` to every metric whose means over random folds and left-out studies are both given."""
    return {metric: drop_percent(random[metric], loso[metric], metric) for metric in random if metric in loso}


def _is_constant(values: NDArray[np.float64], norms: NDArray[np.float64]) -> NDArray[np.bool_]:
    constant: NDArray[np.bool_] = (values == values[:1]).all(axis=0)
    return constant | (norms <= _NEARLY_CONSTANT * np.abs(values.mean(axis=0)))


def _counted(values: NDArray[np.float64], nan_policy: NanPolicy) -> NDArray[np.float64]:
    if nan_policy == "omit":
        return values[~np.isnan(values)]
    return np.nan_to_num(values, nan=0.0) if nan_policy == "zero" else values


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
