"""Labelled images + backbones → classification by probes on frozen embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import arg

from ..embed.backbone import Backbone
from ..embed.embedding_cache import EmbeddingOptions
from ..probes.logistic import ProbeResult, linear_probe
from ..probes.neighbours import knn_probe
from ..report import Metric, Result, ScoreSheet
from ..report.page import figure, section
from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from ..runtime.stage import OnStage, stage_reporter
from .arguments import errors_in
from .labelled_patches import (
    LabelledPatchCommand,
    LabelledPatchOptions,
    confusion_matrix,
    count_images,
    embed_images,
)
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
    """Options of the command.

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
        root: Folder or table, see ``open_images``.
        backbones: The models; the first is the one that others are compared with.
        options: Everything else.
        on_batch: Called after every batch.
        on_stage: Called after every fold.

    Returns:
        The result; None on ranks other than the first. ``arrays`` holds ``confusion``: counts for each model and
        probe, folds added up, rows true and columns predicted, in the order of the setting ``classes``.

    Raises:
        EvaluationError: A probe is unknown, or a fold cannot be fitted; the message names it.
    """
    options = options or ClassificationOptions()
    probes: dict[str, Callable[..., ProbeResult]] = {
        "linear": partial(linear_probe, max_iter=options.max_iter),
        "knn": partial(knn_probe, k=options.num_neighbours),
    }
    unknown = set(options.probes) - set(probes)
    if unknown:
        raise EvaluationError(f"unknown probe '{min(unknown)}'; choose linear or knn")
    embedded = embed_images(root, backbones, options, on_batch)
    if not embedded.features:
        return None
    images, folds = embedded.images, embedded.folds
    sheet = ScoreSheet(METRICS, ddof=options.ddof, seed=options.seed)
    confusion = []
    on_fold = stage_reporter("probes", len(embedded.features) * len(options.probes) * len(folds), on_stage)
    for label, features in embedded.features.items():
        for probe in options.probes:
            counts = np.zeros((len(images.classes),) * 2, dtype=np.int64)
            for fold in folds:
                train, test = fold
                with errors_in(f"fold {fold.name}, {probe} probe"):
                    found = probes[probe](
                        features[train], images.labels[train], features[test], images.labels[test]
                    )
                values = {metric: getattr(found, metric) for metric in METRICS}
                sheet.add(label, probe, fold.name, values, num_train=len(train), num_test=len(test))
                counts += require("sklearn.metrics").confusion_matrix(
                    images.labels[test], found.prediction, labels=images.classes
                )
                on_fold(f"{label}, {probe}")
            confusion.append({"model": label, "probe": probe, "counts": counts.tolist()})
    return embedded.result(
        Classification.name, options, sheet, {"confusion": confusion}, {"classes": images.classes}
    )


class Classification(Task[ClassificationCommand]):
    """Classify images by linear and nearest-neighbour probes."""

    name = "classification"
    title = "Patch classification"
    setting = "Probe"
    protocols = {"linear": "linear", "knn": "kNN"}  # noqa: RUF012 - a constant of the class
    options = ClassificationCommand

    def num_images(self, options: ClassificationCommand) -> int:
        """Counts the images."""
        return count_images(options.root, options.options.layout)

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
