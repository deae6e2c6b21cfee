"""Tasks on labelled patches: classification and retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...probes.resampling import Interval, MetricSummary
from .base import Result


@dataclass(frozen=True, kw_only=True)
class ClassificationFold:
    """One train and test split.

    Args:
        name: The fold's name; `test` for a fixed split.
        num_train: Images to fit on.
        num_test: Images to classify.
        accuracy: Share of correct predictions.
        balanced_accuracy: Mean recall over the classes.
        quadratic_kappa: Cohen's kappa with quadratic weights.
        weighted_f1: F1 score, weighted by the classes' frequencies.
        auroc: Area under the ROC curve, one against one where there are more than two classes.
        confusion: Counts, rows true and columns predicted, in the order of `ClassificationResult.classes`.
    """

    name: str
    num_train: int
    num_test: int
    accuracy: float
    balanced_accuracy: float
    quadratic_kappa: float
    weighted_f1: float
    auroc: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ClassificationScores:
    """One model under one probe.

    Args:
        model: The model's label.
        probe: `linear` or `knn`.
        folds: Every split.
        summary: `accuracy`, `balanced_accuracy`, `quadratic_kappa`, `weighted_f1`, `auroc`.
    """

    model: str
    probe: str
    folds: tuple[ClassificationFold, ...]
    summary: tuple[MetricSummary, ...]


@dataclass(frozen=True, kw_only=True)
class ClassificationResult(Result):
    """Patch classification.

    Args:
        classes: Class names, sorted.
        layout: How the data lay: `folders`, `csv`, `mhist`, `unitopatho`.
        scores: One for each model and probe.
    """

    task: ClassVar[str] = "classification"

    classes: tuple[str, ...]
    layout: str
    scores: tuple[ClassificationScores, ...]


@dataclass(frozen=True, kw_only=True)
class ClassRetrieval:
    """Retrieval by the prototype of one class.

    Args:
        name: The class.
        num_support: Images that make the prototype.
        num_queries: Images of the class among the queries.
        precision: k → share of the class among the k queries nearest to the prototype.
    """

    name: str
    num_support: int
    num_queries: int
    precision: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RetrievalScores:
    """One model.

    Args:
        model: The model's label.
        accuracy: Share of queries whose nearest prototype is their class's.
        accuracy_interval: Bootstrap over queries.
        mean_precision: k → mean over the classes.
        classes: Every class.
    """

    model: str
    accuracy: float
    accuracy_interval: Interval | None
    mean_precision: dict[str, float]
    classes: tuple[ClassRetrieval, ...]


@dataclass(frozen=True, kw_only=True)
class RetrievalResult(Result):
    """Patch retrieval by class prototypes.

    Args:
        layout: How the data lay, as in `ClassificationResult`.
        scores: One for each model.
    """

    task: ClassVar[str] = "retrieval"

    layout: str
    scores: tuple[RetrievalScores, ...]
