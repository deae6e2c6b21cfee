"""Expression prediction: folds and genes, drops, maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...probes.resampling import MetricSummary
from .base import Result


@dataclass(frozen=True, kw_only=True)
class GeneScore:
    """One gene in one fold.

    Args:
        gene: Its symbol.
        pcc: Pearson correlation; NaN where measurement or prediction is constant.
        mse: Mean squared error of log1p counts.
        mae: Mean absolute error of log1p counts.
        r2: Coefficient of determination; NaN where the measurement is constant.
    """

    gene: str
    pcc: float
    mse: float
    mae: float
    r2: float


@dataclass(frozen=True, kw_only=True)
class ExpressionFold:
    """One fold of the expression task.

    Args:
        name: The split's number, or the study left out.
        num_train: Spots to fit on.
        num_test: Spots to predict.
        test_samples: Samples with spots in the test part.
        num_components: Principal components kept; None without PCA.
        alpha: Penalty of the ridge regression.
        pcc: Mean over the genes.
        pcc10: Mean of the ten best genes.
        mse: Mean over the genes.
        mae: Mean over the genes.
        r2: Mean over the genes.
        num_constant: Genes without a correlation, treated as the NaN policy says.
        genes: Every gene, in the panel's order.
    """

    name: str
    num_train: int
    num_test: int
    test_samples: tuple[str, ...]
    num_components: int | None
    alpha: float
    pcc: float
    pcc10: float
    mse: float
    mae: float
    r2: float
    num_constant: int
    genes: tuple[GeneScore, ...]


@dataclass(frozen=True, kw_only=True)
class ExpressionScores:
    """One model under one protocol.

    Args:
        model: The model's label.
        protocol: `csv` (the task's own splits), `random` (k-fold over spots), `loso` (leave one study out) or
            `patient` (leave one patient out).
        folds: Every fold.
        summary: `pcc`, `pcc10`, `mse`, `mae`, `r2`.
    """

    model: str
    protocol: str
    folds: tuple[ExpressionFold, ...]
    summary: tuple[MetricSummary, ...]


@dataclass(frozen=True, kw_only=True)
class ExpressionDrop:
    """What leaving studies out costs a model, against random folds.

    Args:
        model: The model's label.
        metric: `pcc`, `pcc10`, `mse` or `mae`.
        random: Mean over the random folds.
        loso: Mean over the left-out studies.
        percent: (random − loso) / random for correlations, (loso − random) / random for errors, in percent; None
            where `random` is not above 0.
    """

    model: str
    metric: str
    random: float
    loso: float
    percent: float | None


@dataclass(frozen=True, kw_only=True)
class ExpressionMap:
    """One gene on one sample, measured and as predicted while the sample's spots were in the test part.

    Args:
        model: The model's label.
        protocol: As in `ExpressionScores`.
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


@dataclass(frozen=True, kw_only=True)
class ExpressionResult(Result):
    """Expression prediction.

    Args:
        panel: `hvg`, `mean`, `hmhvg`, or the name of the file that lists the genes.
        panel_size: Genes asked for.
        panel_selected_on: `training folds`, `all samples` or `file`.
        preset: Ridge preset: `hest` (no intercept) or `intercept`.
        nan_policy: What becomes of genes without a correlation: `omit`, `propagate`, `zero`.
        scores: One for each model and protocol.
        drops: One for each model and metric, where there are random folds and left-out studies.
        maps: The genes chosen for maps.
        samples: sample → study; empty strings where no studies were given.
    """

    task: ClassVar[str] = "expression"

    panel: str
    panel_size: int
    panel_selected_on: str
    preset: str
    nan_policy: str
    scores: tuple[ExpressionScores, ...]
    drops: tuple[ExpressionDrop, ...]
    maps: tuple[ExpressionMap, ...]
    samples: dict[str, str]
