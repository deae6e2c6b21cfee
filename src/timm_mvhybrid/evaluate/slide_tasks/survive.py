"""Bags of patch embeddings + follow-up → survival."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...cohorts.bags import SlideTable, read_slides
from ...data import DataError
from ...probes.concordance import concordance_index
from ...probes.cox import cox_risks, log_rank_p_value
from ...probes.mixture import mixture_prototypes, slide_mixture_embedding
from ...probes.resampling import summarise
from ...probes.splits import Fold, patient_folds
from ...report.results import PatientRisk, SurvivalFold, SurvivalResult, SurvivalScores
from ...runtime.errors import EvaluationError
from ...runtime.stage import OnStage, stage_reporter
from .options import Bags, SlideTaskOptions, compare_folds, score_each, slides_provenance

_EVENTS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def evaluate_survival(
    folders: Sequence[str | Path],
    follow_up: str | Path,
    options: SlideTaskOptions | None = None,
    *,
    on_stage: OnStage = None,
) -> SurvivalResult:
    """Predicts survival from mixture embeddings by a linear Cox model, on folds over patients.

    The slides of a patient are one bag. Prototypes, standardisation and the median risk come from the train part.

    Args:
        folders: Embeddings by one model each, see `read_bags`.
        follow_up: CSV with slide_id, patient (or case_id), time and event (1 or true: observed, 0 or false: censored).
        options: Everything else.
        on_stage: Called after every fold.

    Returns:
        The result.

    Raises:
        DataError: If times or events are no such values or differ between slides of a patient.
        EvaluationError: If a fold has no event to train on; the message names it.
    """
    options = options or SlideTaskOptions()
    table = read_slides(follow_up, ("time", "event"))
    patients, times, events = _follow_up(table)
    folds = patient_folds(patients, options.num_folds, options.seed, labels=events)
    owner = [patients.index(patient) for patient in table.patients]

    def judge(label: str, bags: Bags) -> SurvivalScores:
        merged = [
            np.concatenate([bag for bag, whose in zip(bags, owner, strict=True) if whose == index])
            for index in range(len(patients))
        ]
        return _survive(label, merged, patients, times, events, folds, options, on_fold)

    on_fold = stage_reporter("survival", len(folders) * len(folds), on_stage)
    scores, records, digests = score_each(folders, table, judge)
    return SurvivalResult(
        dataset=table.path.stem,
        models=tuple(records),
        comparisons=compare_folds(
            [(score.model, [fold.concordance for fold in score.folds]) for score in scores],
            "concordance",
            options.seed,
        ),
        provenance=slides_provenance(table, digests, options),
        notes=tuple(
            f"Fold {fold.name} has no pair of patients to compare."
            for fold in scores[0].folds
            if np.isnan(fold.concordance)
        ),
        time_unit=options.time_unit,
        scores=tuple(scores),
    )


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
                "0, events 1 or true (observed), 0 or false (censored); other codes have to be turned into these"
            )
        entry = (time, _EVENTS[event_text.lower()])
        if known.setdefault(patient, entry) != entry:
            raise DataError(f"{table.path}: slides of patient '{patient}' differ in time or event")
    return (
        list(known),
        np.array([time for time, _ in known.values()]),
        np.array([event for _, event in known.values()]),
    )


def _survive(
    label: str,
    bags: Bags,
    patients: Sequence[str],
    times: NDArray[np.float64],
    events: NDArray[np.bool_],
    folds: Sequence[Fold],
    options: SlideTaskOptions,
    on_fold: Callable[[str], None],
) -> SurvivalScores:
    fold_records, risks = [], []
    for fold in folds:
        try:
            prototypes = mixture_prototypes(
                [bags[row] for row in fold.train], options.num_prototypes, seed=options.seed
            )
            train, test = (
                np.stack(
                    [
                        slide_mixture_embedding(
                            bags[row],
                            prototypes,
                            num_iters=options.num_iters,
                            tau=options.tau,
                            eps=options.eps,
                        )
                        for row in rows
                    ]
                )
                for rows in fold
            )
            train_risk, test_risk = cox_risks(
                train, events[fold.train], times[fold.train], test, alpha=options.cox_alpha
            )
        except EvaluationError as error:
            raise EvaluationError(f"fold {fold.name}: {error}") from error
        found = concordance_index(events[fold.test], times[fold.test], test_risk)
        fold_records.append(
            SurvivalFold(
                name=fold.name,
                num_train=len(fold.train),
                num_test=len(fold.test),
                concordance=found.concordance,
                concordant=found.concordant,
                discordant=found.discordant,
                tied_risk=found.tied_risk,
            )
        )
        median = float(np.median(train_risk))
        risks += [
            PatientRisk(
                patient=patients[row],
                fold=fold.name,
                time=float(times[row]),
                event=bool(events[row]),
                risk=float(risk),
                high_risk=bool(risk > median),
            )
            for row, risk in zip(fold.test, test_risk, strict=True)
        ]
        on_fold(label)
    return SurvivalScores(
        model=label,
        folds=tuple(fold_records),
        summary=(
            summarise(
                "concordance", [one.concordance for one in fold_records], ddof=options.ddof, seed=options.seed
            ),
        ),
        patients=tuple(risks),
        log_rank_p_value=log_rank_p_value(
            [one.event for one in risks], [one.time for one in risks], [one.high_risk for one in risks]
        ),
    )
