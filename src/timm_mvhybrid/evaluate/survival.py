"""Bags of patch embeddings + follow-up → survival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import arg

from ..cohorts.bags import SlideTable, read_slides
from ..probes.concordance import concordance_index
from ..probes.cox import cox_risks, log_rank_p_value
from ..probes.mixture import mixture_prototypes, slide_mixture_embedding
from ..probes.splits import Fold, patient_folds
from ..report import Metric, Result, ScoreSheet
from ..report.page import figure, section
from ..report.table import Cell, Table, number_cell, text_cell
from ..runtime.digest import file_sha256
from ..runtime.errors import DataError
from ..runtime.provenance import ModelRecord
from ..runtime.stage import OnStage, stage_reporter
from .arguments import errors_in
from .slide_bags import (
    PROTOCOL,
    BagOptions,
    Bags,
    SlideOptions,
    SlideTask,
    by_model,
    read_models,
    survival_curves,
)
from .task import Progress, register_task

METRICS = {"concordance": Metric(label="Concordance")}
_EVENTS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True, kw_only=True)
class SurvivalOptions(SlideOptions):
    """Survival.

    Attributes:
        num_prototypes: Components of the mixture.
        num_iters: Iterations of the mixture embedding.
        tau: Patches that the prior of the mixture embedding counts as, at each prototype.
        eps: Variance of that prior.
        cox_alpha: Ridge penalty of the Cox model.
        time_unit: Unit of the times, such as months, for the report.
    """

    num_prototypes: Annotated[int, arg(metavar="N")] = 16
    num_iters: Annotated[int, arg(metavar="N")] = 1
    tau: Annotated[float, arg(metavar="VALUE")] = 1.0
    eps: Annotated[float, arg(metavar="VALUE")] = 1.0
    cox_alpha: Annotated[float, arg(metavar="VALUE")] = 1.0
    time_unit: Annotated[str, arg(metavar="NAME")] = ""


@dataclass(frozen=True, kw_only=True)
class SurvivalCommand(BagOptions):
    """Options of the command.

    Attributes:
        follow_up: CSV with the columns slide_id, patient (or case_id), time and event (1 or true: observed, 0 or false:
            censored).
        options: Everything else.
    """

    follow_up: Annotated[Path, arg(metavar="FILE.csv")]
    options: Annotated[SurvivalOptions, arg(name="")] = field(default_factory=SurvivalOptions)


def evaluate_survival(
    folders: Sequence[str | Path],
    follow_up: str | Path,
    options: SurvivalOptions | None = None,
    *,
    on_stage: OnStage = None,
) -> Result:
    """Predicts survival from mixture embeddings by a linear Cox model, on folds over patients.

    The slides of a patient are one bag. Prototypes, standardisation and the median risk come from the train part.

    Args:
        folders: Embeddings by one model each, see ``read_bags``.
        follow_up: CSV with slide_id, patient (or case_id), time and event (1 or true: observed, 0 or false: censored).
        options: Everything else.
        on_stage: Called after every fold.

    Returns:
        The result. ``arrays`` holds ``patients``: model, patient, fold, time, whether the event was observed, the
        predicted log hazard ratio, and whether it is above the median of the fold's training patients.

    Raises:
        DataError: Times or events are not such values, or differ between slides of a patient.
        EvaluationError: A fold has no event to train on; the message names it.
    """
    options = options or SurvivalOptions()
    table = read_slides(follow_up, ("time", "event"))
    patients, times, events = _follow_up(table)
    folds = patient_folds(patients, options.num_folds, options.seed, labels=events)
    owner = [patients.index(patient) for patient in table.patients]
    sheet = ScoreSheet(METRICS, ddof=options.ddof, seed=options.seed)
    models: list[ModelRecord] = []
    data = {table.path.name: file_sha256(table.path)}
    predicted: list[dict[str, Any]] = []
    empty = set()
    on_fold = stage_reporter("survival", len(folders) * len(folds), on_stage)
    for model, bags, digests in read_models(folders, table):
        models.append(model)
        data |= digests
        merged = [
            np.concatenate([bag for bag, whose in zip(bags, owner, strict=True) if whose == index])
            for index in range(len(patients))
        ]
        for fold in folds:
            with errors_in(f"fold {fold.name}"):
                train_risk, test_risk = _risks(merged, times, events, fold, options)
            found = concordance_index(events[fold.test], times[fold.test], test_risk)
            if np.isnan(found.concordance):
                empty.add(fold.name)
            sheet.add(
                model.label,
                PROTOCOL,
                fold.name,
                {"concordance": found.concordance},
                num_train=len(fold.train),
                num_test=len(fold.test),
                concordant=found.concordant,
                discordant=found.discordant,
                tied_risk=found.tied_risk,
            )
            median = float(np.median(train_risk))
            predicted += [
                {
                    "model": model.label,
                    "patient": patients[row],
                    "fold": fold.name,
                    "time": float(times[row]),
                    "event": bool(events[row]),
                    "risk": float(risk),
                    "high_risk": bool(risk > median),
                }
                for row, risk in zip(fold.test, test_risk, strict=True)
            ]
            on_fold(model.label)
    return sheet.result(
        task=Survival.name,
        dataset=table.path.stem,
        models=models,
        settings={"time_unit": options.time_unit},
        arrays={"patients": predicted},
        options=options,
        data=data,
        notes=[f"Fold {name} has no pair of patients to compare." for name in sorted(empty)],
    )


class Survival(SlideTask[SurvivalCommand]):
    """Predict survival from slides: mixture embedding and a linear Cox model."""

    name = "survival"
    title = "Survival"
    options = SurvivalCommand

    def data(self, options: SurvivalCommand) -> Path:
        """Names the data by the table of follow-up."""
        return options.follow_up

    def run(self, options: SurvivalCommand, progress: Progress) -> Result:
        """Evaluates."""
        return evaluate_survival(options.bags, options.follow_up, options.options, on_stage=progress.on_stage)

    def caption(self, result: Result) -> str:
        """Names the patients."""
        return f"Survival, patients of {result.dataset}; mean ± standard deviation over folds."

    def tables(self, result: Result) -> list[Table]:
        """Compares the risk groups by the log-rank test."""

        def p_value(row: tuple[str, list[Any]]) -> Cell:
            columns = ([one[name] for one in row[1]] for name in ("event", "time", "high_risk"))
            return number_cell(log_rank_p_value(*columns), 4)

        return [
            Table.of(
                "log-rank",
                "Patients above against below the median risk of their fold's training patients: log-rank test.",
                by_model(result.arrays.get("patients", ())).items(),
                [
                    ("Model", lambda row: text_cell(row[0])),
                    ("High risk", lambda row: number_cell(sum(one["high_risk"] for one in row[1]), 0)),
                    ("Low risk", lambda row: number_cell(sum(not one["high_risk"] for one in row[1]), 0)),
                    ("p", p_value),
                ],
            )
        ]

    def sections(self, result: Result) -> list[str]:
        """Draws the Kaplan–Meier curves of the risk groups."""
        parts = [
            figure(f"survival-{model}", survival_curves(model, patients, result.settings["time_unit"]), model)
            for model, patients in by_model(result.arrays.get("patients", ())).items()
        ]
        hint = (
            "Kaplan–Meier estimate of patients above and below the median risk of their fold's training patients; "
            "below, the number at risk."
        )
        return [section("Risk groups", f'<div class="pair">{"".join(parts)}</div>', hint)] if parts else []


register_task(Survival())


def _follow_up(table: SlideTable) -> tuple[list[str], NDArray[np.float64], NDArray[np.bool_]]:
    known: dict[str, tuple[float, bool]] = {}
    for slide, patient, time_text, event_text in zip(
        table.slides, table.patients, table.columns["time"], table.columns["event"], strict=True
    ):
        try:
            time = float(time_text)
        except ValueError:
            time = float("nan")
        if not (np.isfinite(time) and time >= 0) or event_text.lower() not in _EVENTS:
            raise DataError(
                f"{table.path}: slide '{slide}' has time '{time_text}' and event '{event_text}'; times are numbers from "
                "0, events 1 or true (observed), 0 or false (censored); convert other codes to these"
            )
        entry = (time, _EVENTS[event_text.lower()])
        if known.setdefault(patient, entry) != entry:
            raise DataError(f"{table.path}: slides of patient '{patient}' differ in time or event")
    return (
        list(known),
        np.array([time for time, _ in known.values()]),
        np.array([event for _, event in known.values()]),
    )


def _risks(
    bags: Bags,
    times: NDArray[np.float64],
    events: NDArray[np.bool_],
    fold: Fold,
    options: SurvivalOptions,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fits mixture and Cox model on the train part; log hazard ratios of the train and the test part."""
    embed = partial(slide_mixture_embedding, num_iters=options.num_iters, tau=options.tau, eps=options.eps)
    prototypes = mixture_prototypes(
        [bags[row] for row in fold.train], options.num_prototypes, seed=options.seed
    )
    train, test = (np.stack([embed(bags[row], prototypes) for row in rows]) for rows in fold)
    return cox_risks(train, events[fold.train], times[fold.train], test, alpha=options.cox_alpha)
