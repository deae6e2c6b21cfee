"""Bags of patch embeddings + labels → slide classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...cohorts.bags import SlideTable, read_slides
from ...data import DataError
from ...probes.attention_mil import attention_mil
from ...probes.resampling import summarise
from ...probes.splits import Fold, patient_folds
from ...report.results import SlideFold, SlideScore, SlideScores, SlidesResult
from ...runtime.errors import EvaluationError
from ...runtime.extras import require
from ...runtime.stage import OnStage, stage_reporter
from .options import Bags, SlideTaskOptions, compare_folds, score_each, slides_provenance


def evaluate_slides(
    folders: Sequence[str | Path],
    labels: str | Path,
    options: SlideTaskOptions | None = None,
    *,
    on_stage: OnStage = None,
) -> SlidesResult:
    """Classifies slides by attention over patch embeddings, on folds over patients.

    Args:
        folders: Embeddings by one model each, see `read_bags`; the first is the one that others are compared with.
        labels: CSV with slide_id, patient (or case_id) and label; two labels.
        options: Everything else.
        on_stage: Called after every fold.

    Returns:
        The result.

    Raises:
        DataError: If there are not exactly two labels, or files do not fit.
        EvaluationError: If a fold has one class to train on; the message names it.
    """
    options = options or SlideTaskOptions()
    table = read_slides(labels, ("label",))
    names = table.columns["label"]
    found = sorted(set(names))
    if len(found) != 2:
        raise DataError(f"{table.path}: has the labels {', '.join(found)}; there must be two")
    positive_label = options.positive_label or min(found, key=lambda name: (names.count(name), name))
    if positive_label not in found:
        raise DataError(f"{table.path}: has no label '{positive_label}'; it has {', '.join(found)}")
    positive = np.array([name == positive_label for name in names])
    folds = patient_folds(table.patients, options.num_folds, options.seed, labels=positive)
    on_fold = stage_reporter("attention", len(folders) * len(folds), on_stage)
    scores, records, digests = score_each(
        folders, table, lambda label, bags: _classify(label, bags, table, positive, folds, options, on_fold)
    )
    empty = {fold.name for score in scores for fold in score.folds if np.isnan(fold.auroc)}
    return SlidesResult(
        dataset=table.path.stem,
        models=tuple(records),
        comparisons=compare_folds(
            [(score.model, [fold.auroc for fold in score.folds]) for score in scores], "auroc", options.seed
        ),
        provenance=slides_provenance(table, digests, options),
        notes=tuple(
            f"Fold {name} tests slides of one label only and has no AUROC." for name in sorted(empty)
        ),
        positive_label=positive_label,
        negative_label=next(name for name in found if name != positive_label),
        scores=tuple(scores),
    )


def _classify(
    label: str,
    bags: Bags,
    table: SlideTable,
    positive: NDArray[np.bool_],
    folds: Sequence[Fold],
    options: SlideTaskOptions,
    on_fold: Callable[[str], None],
) -> SlideScores:
    metrics = require("sklearn.metrics")
    fold_records, slides = [], []
    for fold in folds:
        try:
            probability = attention_mil(
                [bags[row] for row in fold.train],
                positive[fold.train],
                [bags[row] for row in fold.test],
                options.attention,
            )
        except EvaluationError as error:
            raise EvaluationError(f"fold {fold.name}: {error}; use fewer --num-folds") from error
        truth = positive[fold.test]
        recalls = [
            np.mean((probability > 0.5)[truth == side] == side)
            for side in (True, False)
            if (truth == side).any()
        ]
        both = truth.any() and not truth.all()
        fold_records.append(
            SlideFold(
                name=fold.name,
                num_train=len(fold.train),
                num_test=len(fold.test),
                auroc=float(metrics.roc_auc_score(truth, probability)) if both else float("nan"),
                balanced_accuracy=float(np.mean(recalls)),
            )
        )
        slides += [
            SlideScore(
                slide_id=table.slides[row],
                patient=table.patients[row],
                fold=fold.name,
                positive=bool(positive[row]),
                score=float(value),
            )
            for row, value in zip(fold.test, probability, strict=True)
        ]
        on_fold(label)
    summary = tuple(
        summarise(name, [getattr(one, name) for one in fold_records], ddof=options.ddof, seed=options.seed)
        for name in ("auroc", "balanced_accuracy")
    )
    return SlideScores(model=label, folds=tuple(fold_records), summary=summary, slides=tuple(slides))
