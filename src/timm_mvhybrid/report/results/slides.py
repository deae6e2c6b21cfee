"""Tasks on slides and patients: labels and survival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...probes.resampling import MetricSummary
from .base import Result


@dataclass(frozen=True, kw_only=True)
class SlideScore:
    """One slide, scored while it was in the test part.

    Args:
        slide_id: The slide.
        patient: Its patient.
        fold: The fold it was tested in.
        positive: Whether the label is the positive one.
        score: Probability of the positive label.
    """

    slide_id: str
    patient: str
    fold: str
    positive: bool
    score: float


@dataclass(frozen=True, kw_only=True)
class SlideFold:
    """One fold over patients.

    Args:
        name: The fold's number.
        num_train: Slides to fit on.
        num_test: Slides to score.
        auroc: NaN where the test part has one class only.
        balanced_accuracy: At a probability of one half.
    """

    name: str
    num_train: int
    num_test: int
    auroc: float
    balanced_accuracy: float


@dataclass(frozen=True, kw_only=True)
class SlideScores:
    """One set of embeddings.

    Args:
        model: The model's label.
        folds: Every fold.
        summary: `auroc`, `balanced_accuracy`.
        slides: Every slide.
    """

    model: str
    folds: tuple[SlideFold, ...]
    summary: tuple[MetricSummary, ...]
    slides: tuple[SlideScore, ...]


@dataclass(frozen=True, kw_only=True)
class SlidesResult(Result):
    """Slide classification by attention over patch embeddings.

    Args:
        positive_label: The label counted as positive, such as `MSI`.
        negative_label: The other one.
        scores: One for each set of embeddings.
    """

    task: ClassVar[str] = "slides"

    positive_label: str
    negative_label: str
    scores: tuple[SlideScores, ...]


@dataclass(frozen=True, kw_only=True)
class PatientRisk:
    """One patient, judged while in the test part.

    Args:
        patient: The patient.
        fold: The fold it was tested in.
        time: Time to event or to the end of observation, in the unit of the input.
        event: Whether the event was observed.
        risk: Predicted log hazard ratio.
        high_risk: Whether the risk is above the median of the fold's training patients.
    """

    patient: str
    fold: str
    time: float
    event: bool
    risk: float
    high_risk: bool


@dataclass(frozen=True, kw_only=True)
class SurvivalFold:
    """One fold over patients.

    Args:
        name: The fold's number.
        num_train: Patients to fit on.
        num_test: Patients to judge.
        concordance: Concordance index; NaN where no pair can be compared.
        concordant: Pairs in the right order.
        discordant: Pairs in the wrong order.
        tied_risk: Pairs of equal risk.
    """

    name: str
    num_train: int
    num_test: int
    concordance: float
    concordant: int
    discordant: int
    tied_risk: int


@dataclass(frozen=True, kw_only=True)
class SurvivalScores:
    """One set of embeddings.

    Args:
        model: The model's label.
        folds: Every fold.
        summary: `concordance`.
        patients: Every patient.
        log_rank_p_value: Of high against low risk, all test patients together; NaN where one group is empty.
    """

    model: str
    folds: tuple[SurvivalFold, ...]
    summary: tuple[MetricSummary, ...]
    patients: tuple[PatientRisk, ...]
    log_rank_p_value: float


@dataclass(frozen=True, kw_only=True)
class SurvivalResult(Result):
    """Survival by a linear Cox model on slide mixture embeddings.

    Args:
        time_unit: Unit of the times, such as `months`; empty where unknown.
        scores: One for each set of embeddings.
    """

    task: ClassVar[str] = "survival"

    time_unit: str
    scores: tuple[SurvivalScores, ...]
