"""Labelled images + backbones → retrieval of a class by its prototype."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import arg

from ..embed.backbone import Backbone
from ..embed.embedding_cache import EmbeddingOptions
from ..probes.prototypes import prototype_retrieval
from ..probes.resampling import bootstrap_interval
from ..report import Metric, Result, ScoreSheet
from ..report.page import figure, section
from ..report.presentation import metric_of
from ..report.table import Cell, Table, number_cell, text_cell
from .labelled_patches import (
    LabelledPatchCommand,
    LabelledPatchOptions,
    count_images,
    embed_images,
    precision_bars,
)
from .task import OnBatch, Progress, Task, register_task

PROTOCOL = "prototypes"


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(LabelledPatchOptions):
    """Retrieval.

    Attributes:
        depths: Numbers of nearest queries whose precision is taken.
    """

    depths: tuple[int, ...] = (1, 5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class RetrievalCommand(LabelledPatchCommand):
    """Options of the command.

    Attributes:
        options: Everything else.
    """

    options: Annotated[RetrievalOptions, arg(name="")] = field(
        default_factory=lambda: RetrievalOptions(embedding=EmbeddingOptions(num_workers="auto"))
    )


def evaluate_retrieval(
    root: str | Path,
    backbones: Sequence[Backbone],
    options: RetrievalOptions | None = None,
    *,
    on_batch: OnBatch = None,
) -> Result | None:
    """Retrieves images of a class by the class's prototype.

    Where the data are not split, the first of the folds is queried and the others support it.

    Args:
        root: Folder or table, see ``open_images``.
        backbones: The models.
        options: Everything else.
        on_batch: Called after every batch.

    Returns:
        The result; None on ranks other than the first. ``accuracy`` is the fraction of queries nearest to their own
        class's prototype, ``precision@k`` the mean over the classes, each of which is a unit. ``arrays`` holds
        ``classes``: name, images that make the prototype, and queries.
    """
    options = options or RetrievalOptions()
    embedded = embed_images(root, backbones, options, on_batch)
    if not embedded.features:
        return None
    images, fold = embedded.images, embedded.folds[0]
    train, test = fold
    sheet = ScoreSheet({"accuracy": Metric(label="Accuracy")}, ddof=options.ddof, seed=options.seed)
    classes: list[dict[str, object]] = []
    for label, features in embedded.features.items():
        found = prototype_retrieval(
            features[train], images.labels[train], features[test], images.labels[test], options.depths
        )
        names = [str(name) for name in found.classes]
        precision = {f"precision@{k}": values for k, values in found.precision.items()}
        sheet.metrics |= {name: Metric(label=name) for name in precision}
        hits = (found.prediction == images.labels[test]).astype(np.float64)
        sheet.add(
            label,
            PROTOCOL,
            fold.name,
            {
                "accuracy": found.accuracy,
                **{name: float(values.mean()) for name, values in precision.items()},
            },
            num_train=len(train),
            num_test=len(test),
            units={
                name: dict(zip(names, values.tolist(), strict=True)) for name, values in precision.items()
            },
            intervals={"accuracy": bootstrap_interval(hits, seed=options.seed, over="queries")},
        )
        classes = [
            {"name": name, "num_support": int(support), "num_queries": int(queries)}
            for name, support, queries in zip(names, found.num_support, found.num_queries, strict=True)
        ]
    return embedded.result(Retrieval.name, options, sheet, {"classes": classes})


class Retrieval(Task[RetrievalCommand]):
    """Retrieve images of a class by its prototype."""

    name = "retrieval"
    title = "Patch retrieval"
    options = RetrievalCommand

    def num_images(self, options: RetrievalCommand) -> int:
        """Counts the images."""
        return count_images(options.root, options.options.layout)

    def run(self, options: RetrievalCommand, progress: Progress) -> Result | None:
        """Builds the models and evaluates them."""
        options.options.embedding.check()
        return evaluate_retrieval(
            options.root,
            options.models.load(options.options.seed, progress.on_warning),
            options.options,
            on_batch=progress.on_batch,
        )

    def caption(self, result: Result) -> str:
        """Says what accuracy and precision are."""
        return (
            f"Retrieval by prototypes, {result.dataset}: fraction of queries nearest to their own class's prototype, and "
            "precision among the k queries nearest to each prototype, mean over the classes."
        )

    def tables(self, result: Result) -> list[Table]:
        """Makes the table of classes."""
        metrics = [name for name in result.metrics if name != "accuracy"]

        def precision(metric: str) -> tuple[str, Callable[[Any], Cell]]:
            return metric_of(result, metric).label, lambda row: number_cell(
                _precision(result, row[0], metric).get(row[1]["name"])
            )

        return [
            Table.of(
                "classes",
                "Every class: images that make the prototype, its queries, and precision.",
                itertools.product(result.models_of(PROTOCOL), result.arrays.get("classes", ())),
                [
                    ("Model", lambda row: text_cell(row[0])),
                    ("Class", lambda row: text_cell(row[1]["name"])),
                    ("Support", lambda row: number_cell(row[1]["num_support"], 0)),
                    ("Queries", lambda row: number_cell(row[1]["num_queries"], 0)),
                    *map(precision, metrics),
                ],
                num_text_columns=2,
            )
        ]

    def sections(self, result: Result) -> list[str]:
        """Draws the precision of every class at the smallest k."""
        metrics = [name for name in result.metrics if name != "accuracy"]
        if not metrics:
            return []
        first = min(metrics, key=lambda name: int(name.partition("@")[2]))
        precision = {model: _precision(result, model, first) for model in result.models_of(PROTOCOL)}
        bars = figure("retrieval", precision_bars(first, precision), scroll=True)
        return [section("Precision", bars, "At the smallest k, for each class.")]


register_task(Retrieval())


def _precision(result: Result, model: str, metric: str) -> dict[str, float]:
    folds = list(result.unit_values(model, PROTOCOL, metric).values())
    return folds[0] if folds else {}
