"""Labelled images + backbones → classification by probes on frozen embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import arg

from ..cohorts.labelled_images import LabelledImages
from ..embed.backbone import Backbone
from ..embed.embedding_cache import EmbeddingOptions
from ..probes.logistic import ProbeResult, linear_probe
from ..probes.neighbours import knn_probe
from ..probes.splits import Fold
from ..report import Metric, Result, ScoreSheet
from ..report.page import figure, section
from ..runtime.errors import EvaluationError
from ..runtime.stage import OnStage, stage_reporter
from .labelled_patches import (
    LabelledPatchCommand,
    LabelledPatchOptions,
    dataset_name,
    embed_images,
    image_files,
    split_notes,
)
from .patch_charts import confusion_matrix
from .task import OnBatch, Progress, Task, register_task

METRICS = {
    "accuracy": Metric(label="Accuracy"),
    "balanced_accuracy": Metric(label="Balanced accuracy"),
    "quadratic_kappa": Metric(label="Quadratic kappa"),
    "weighted_f1": Metric(label="Weighted F1"),
    "auroc": Metric(label="AUROC"),
}


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(LabelledPatchOptions):
    """Classification.

    Attributes:
        probes: The probes.
        num_neighbours: Neighbours of the kNN probe.
        max_iter: Iterations of the linear probe.
    """

    probes: tuple[Literal["linear", "knn"], ...] = ("linear", "knn")
    num_neighbours: Annotated[int, arg(metavar="N")] = 20
    max_iter: Annotated[int, arg(metavar="N")] = 1000


@dataclass(frozen=True, kw_only=True)
class ClassificationCommand(LabelledPatchCommand):
    """What the command is told.

    Attributes:
        options: Everything else.
    """

    options: Annotated[ClassificationOptions, arg(name="")] = field(
        default_factory=lambda: ClassificationOptions(embedding=EmbeddingOptions(num_workers="auto"))
    )


def evaluate_classification(
    root: str | Path,
    backbones: Sequence[Backbone],
    options: ClassificationOptions | None = None,
    *,
    on_batch: OnBatch = None,
    on_stage: OnStage = None,
) -> Result | None:
    """Classifies images by probes on frozen embeddings.

    Args:
        root: Folder or table, see `open_images`.
        backbones: The models; the first is the one that others are compared with.
        options: Everything else.
        on_batch: Called after every batch.
        on_stage: Called after every fold.

    Returns:
        The result; None on ranks other than the first. ``arrays`` holds ``confusion``: counts for each model and
        probe, folds added up, rows true and columns predicted, in the order of the setting ``classes``.

    Raises:
        EvaluationError: A fold cannot be fitted; the message names it.
    """
    options = options or ClassificationOptions()
    images, records, embeddings = embed_images(root, backbones, options, on_batch)
    if not embeddings:
        return None
    folds = images.folds(options.num_folds, options.seed)
    sheet = ScoreSheet(METRICS, ddof=options.ddof, seed=options.seed)
    confusion = []
    on_fold = stage_reporter("probes", len(embeddings) * len(options.probes) * len(folds), on_stage)
    for label, features in embeddings.items():
        for probe in options.probes:
            counts = np.zeros((len(images.classes),) * 2, dtype=np.int64)
            for fold in folds:
                try:
                    found = _probe(probe, features, images.labels, fold, options)
                except EvaluationError as error:
                    raise EvaluationError(f"fold {fold.name}, {probe} probe: {error}") from error
                sheet.add(
                    label,
                    probe,
                    fold.name,
                    {metric: getattr(found, metric) for metric in METRICS},
                    num_train=len(fold.train),
                    num_test=len(fold.test),
                )
                counts += _confusion(fold, found, images)
                on_fold(f"{label}, {probe}")
            confusion.append({"model": label, "probe": probe, "counts": counts.tolist()})
    return sheet.result(
        task=Classification.name,
        dataset=dataset_name(root),
        models=records,
        settings={"classes": images.classes, "layout": images.layout},
        arrays={"confusion": confusion},
        options=options,
        data=image_files(root, images),
        notes=split_notes(images),
    )


class Classification(Task[ClassificationCommand]):
    """Classify images by linear and nearest-neighbour probes."""

    name = "classification"
    title = "Patch classification"
    setting = "Probe"
    protocols = {"linear": "linear", "knn": "kNN"}  # noqa: RUF012 - a constant of the class
    options = ClassificationCommand

    def run(self, options: ClassificationCommand, progress: Progress) -> Result | None:
        """Builds the models and evaluates them."""
        options.options.embedding.check()
        return evaluate_classification(
            options.root,
            options.models.load(options.options.seed, progress.on_warning),
            options.options,
            on_batch=progress.on_batch,
            on_stage=progress.on_stage,
        )

    def sections(self, result: Result) -> list[str]:
        """Draws a confusion matrix for each model and probe."""
        classes: list[str] = result.settings["classes"]
        figures = "".join(
            figure(
                f"confusion-{one['model']}-{one['probe']}",
                confusion_matrix(one["model"], classes, one["counts"]),
                f"{one['model']}, {self.protocol(one['probe'])} probe",
            )
            for one in result.arrays.get("confusion", ())
        )
        hint = "Folds added up; fractions are of each true class."
        return [section("Confusion matrices", f'<div class="pair">{figures}</div>', hint)] if figures else []


register_task(Classification())


def _probe(
    probe: str,
    features: NDArray[np.float32],
    labels: NDArray[np.str_],
    fold: Fold,
    options: ClassificationOptions,
) -> ProbeResult:
    train, test = fold
    parts = features[train], labels[train], features[test], labels[test]
    if probe == "linear":
        return linear_probe(*parts, max_iter=options.max_iter)
    if probe == "knn":
        return knn_probe(*parts, k=options.num_neighbours)
    raise EvaluationError(f"unknown probe '{probe}'; choose linear or knn")


def _confusion(fold: Fold, found: ProbeResult, images: LabelledImages) -> NDArray[np.int64]:
    number = {name: index for index, name in enumerate(images.classes)}
    counts: NDArray[Any] = np.zeros((len(number), len(number)), dtype=np.int64)
    for truth, predicted in zip(images.labels[fold.test], found.prediction, strict=True):
        counts[number[str(truth)], number[str(predicted)]] += 1
    return counts
