"""Bags of patch embeddings + labels → slide classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import arg

from ..cohorts.bags import read_slides
from ..probes.attention_mil import AttentionOptions, attention_mil
from ..probes.splits import patient_folds
from ..report import Metric, Result, ScoreSheet
from ..report.page import figure, section
from ..runtime.digest import file_sha256
from ..runtime.errors import DataError, EvaluationError
from ..runtime.extras import require
from ..runtime.provenance import ModelRecord
from ..runtime.stage import OnStage, stage_reporter
from .slide_bags import PROTOCOL, BagOptions, SlideOptions, SlideTask, by_model, read_models, roc_curves
from .task import Progress, register_task

METRICS = {"auroc": Metric(label="AUROC"), "balanced_accuracy": Metric(label="Balanced accuracy")}


@dataclass(frozen=True, kw_only=True)
class SlidesOptions(SlideOptions):
    """Slide classification.

    Attributes:
        positive_label: The label counted as positive; the rarer one by default.
        attention: Training of the attention model.
    """

    positive_label: Annotated[str | None, arg(name="positive", metavar="LABEL")] = None
    attention: Annotated[AttentionOptions, arg(name="")] = field(default_factory=AttentionOptions)


@dataclass(frozen=True, kw_only=True)
class SlidesCommand(BagOptions):
    """Options of the command.

    Attributes:
        labels: CSV with the columns slide_id, patient (or case_id) and label.
        options: Everything else.
    """

    labels: Annotated[Path, arg(metavar="FILE.csv")]
    options: Annotated[SlidesOptions, arg(name="")] = field(default_factory=SlidesOptions)


def evaluate_slides(
    folders: Sequence[str | Path],
    labels: str | Path,
    options: SlidesOptions | None = None,
    *,
    on_stage: OnStage = None,
) -> Result:
    """Classifies slides by attention over patch embeddings, on folds over patients.

    Args:
        folders: Embeddings by one model each, see ``read_bags``; the first is the one that others are compared with.
        labels: CSV with slide_id, patient (or case_id) and label; two labels.
        options: Everything else.
        on_stage: Called after every fold.

    Returns:
        The result. ``arrays`` holds ``slides``: model, slide_id, patient, fold, whether the label is the positive one,
        and the probability of it, given while the slide was in the test part.

    Raises:
        DataError: There are not exactly two labels, or files do not fit.
        EvaluationError: A fold has one class to train on; the message names it.
    """
    options = options or SlidesOptions()
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
    sheet = ScoreSheet(METRICS, ddof=options.ddof, seed=options.seed)
    models: list[ModelRecord] = []
    data = {table.path.name: file_sha256(table.path)}
    slides: list[dict[str, Any]] = []
    one_sided = set()
    on_fold = stage_reporter("attention", len(folders) * len(folds), on_stage)
    for model, bags, digests in read_models(folders, table):
        models.append(model)
        data |= digests
        for fold in folds:
            train, test = fold
            try:
                probability = attention_mil(
                    [bags[row] for row in train],
                    positive[train],
                    [bags[row] for row in test],
                    options.attention,
                )
            except EvaluationError as error:
                raise EvaluationError(f"fold {fold.name}: {error}; use fewer folds, `num_folds`") from error
            values = _scores(positive[test], probability)
            if np.isnan(values["auroc"]):
                one_sided.add(fold.name)
            sheet.add(model.label, PROTOCOL, fold.name, values, num_train=len(train), num_test=len(test))
            slides += [
                {
                    "model": model.label,
                    "fold": fold.name,
                    "slide_id": table.slides[row],
                    "patient": table.patients[row],
                    "positive": bool(positive[row]),
                    "score": float(value),
                }
                for row, value in zip(test, probability, strict=True)
            ]
            on_fold(model.label)
    return sheet.result(
        task=Slides.name,
        dataset=table.path.stem,
        models=models,
        settings={
            "positive_label": positive_label,
            "negative_label": next(name for name in found if name != positive_label),
        },
        arrays={"slides": slides},
        options=options,
        data=data,
        notes=[f"Fold {name} tests slides of one label only and has no AUROC." for name in sorted(one_sided)],
        compared=("auroc",),
    )


class Slides(SlideTask[SlidesCommand]):
    """Classify slides by attention over their patch embeddings, such as MSI against MSS."""

    name = "slides"
    title = "Slide classification"
    options = SlidesCommand

    def data(self, options: SlidesCommand) -> Path:
        """Names the data by the table of labels."""
        return options.labels

    def run(self, options: SlidesCommand, progress: Progress) -> Result:
        """Evaluates; the one seed is that of training, too."""
        chosen = options.options
        chosen = replace(chosen, attention=replace(chosen.attention, seed=chosen.seed))
        return evaluate_slides(options.bags, options.labels, chosen, on_stage=progress.on_stage)

    def caption(self, result: Result) -> str:
        """Names the labels."""
        sides = f"{result.settings['positive_label']} against {result.settings['negative_label']}"
        return f"{sides}, slides of {result.dataset}; mean ± standard deviation over folds."

    def sections(self, result: Result) -> list[str]:
        """Draws the ROC curves."""
        curves = roc_curves(by_model(result.arrays.get("slides", ())))
        hint = "Slides of all test folds together; the table's AUROC is the mean over folds."
        return [section("ROC curves", figure("roc", curves), hint)] if curves else []


register_task(Slides())


def _scores(truth: NDArray[np.bool_], probability: NDArray[np.float64]) -> dict[str, float]:
    recalls = [
        np.mean((probability > 0.5)[truth == side] == side) for side in (True, False) if (truth == side).any()
    ]
    both = truth.any() and not truth.all()
    auroc = require("sklearn.metrics").roc_auc_score(truth, probability) if both else float("nan")
    return {"auroc": float(auroc), "balanced_accuracy": float(np.mean(recalls))}
