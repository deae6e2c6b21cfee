"""Labelled images + backbones → the results of classification and retrieval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...cohorts.labelled_images import LabelledImages, Layout, open_images
from ...embed.backbone import Backbone
from ...embed.embedding_cache import EmbeddingOptions, embed_sources
from ...embed.embeddings import BatchReport
from ...embed.model_input import choose_device
from ...embed.model_labels import unique_labels
from ...probes.logistic import ProbeResult, linear_probe
from ...probes.neighbours import knn_probe
from ...probes.prototypes import prototype_retrieval
from ...probes.resampling import PairedComparison, bootstrap_interval, compare_paired, summarise
from ...probes.splits import Fold
from ...report.results import (
    ClassificationFold,
    ClassificationResult,
    ClassificationScores,
    ClassRetrieval,
    RetrievalResult,
    RetrievalScores,
)
from ...runtime.errors import EvaluationError
from ...runtime.provenance import ModelRecord, Provenance, collect_provenance, hash_files
from ...runtime.ranks import Ranks
from ...runtime.stage import OnStage, stage_reporter

_METRICS = ("accuracy", "balanced_accuracy", "quadratic_kappa", "weighted_f1", "auroc")


@dataclass(frozen=True, kw_only=True)
class PatchTaskOptions:
    """Classification and retrieval.

    Args:
        layout: As in `open_images`.
        probes: `linear`, `knn`; for classification.
        num_neighbours: Of the kNN probe.
        max_iter: Iterations of the linear probe.
        depths: Numbers of nearest queries whose precision is taken; for retrieval.
        num_folds: Folds where the data are not split.
        ddof: Delta degrees of freedom of deviations over folds.
        seed: Seed of folds and bootstrap.
        embedding: How patches are embedded.
    """

    layout: Layout | Literal["auto"] = "auto"
    probes: tuple[Literal["linear", "knn"], ...] = ("linear", "knn")
    num_neighbours: int = 20
    max_iter: int = 1000
    depths: tuple[int, ...] = (1, 5, 10, 20)
    num_folds: int = 5
    ddof: int = 0
    seed: int = 0
    embedding: EmbeddingOptions = field(default_factory=EmbeddingOptions)


def evaluate_classification(
    root: str | Path,
    backbones: Sequence[Backbone],
    options: PatchTaskOptions | None = None,
    *,
    on_batch: Callable[[str, BatchReport], None] | None = None,
    on_stage: OnStage = None,
) -> ClassificationResult | None:
    """Classifies images by probes on frozen embeddings.

    Args:
        root: Folder or table, see `open_images`.
        backbones: The models; the first is the one that others are compared with.
        options: Everything else.
        on_batch: Called after every batch.
        on_stage: Called after every fold.

    Returns:
        The result; None on ranks other than the first.

    Raises:
        EvaluationError: If a fold cannot be fitted; the message names it.
    """
    options = options or PatchTaskOptions()
    images, records, embeddings = _embed(root, backbones, options, on_batch)
    if not embeddings:
        return None
    folds = images.folds(options.num_folds, options.seed)
    on_fold = stage_reporter("probes", len(embeddings) * len(options.probes) * len(folds), on_stage)
    scores = []
    for label, features in embeddings.items():
        for probe in options.probes:
            records_of_folds = []
            for fold in folds:
                try:
                    found = _probe(probe, features, images.labels, fold, options)
                except EvaluationError as error:
                    raise EvaluationError(f"fold {fold.name}, {probe} probe: {error}") from error
                records_of_folds.append(_fold_record(fold, found, images))
                on_fold(f"{label}, {probe}")
            summary = tuple(
                summarise(
                    metric,
                    [getattr(one, metric) for one in records_of_folds],
                    ddof=options.ddof,
                    seed=options.seed,
                )
                for metric in _METRICS
            )
            scores.append(
                ClassificationScores(model=label, probe=probe, folds=tuple(records_of_folds), summary=summary)
            )
    return ClassificationResult(
        dataset=_dataset(root),
        models=tuple(records.values()),
        comparisons=tuple(_compare(scores, options)),
        provenance=_provenance(root, images, options),
        notes=_notes(images),
        classes=tuple(images.classes),
        layout=images.layout,
        scores=tuple(scores),
    )


def evaluate_retrieval(
    root: str | Path,
    backbones: Sequence[Backbone],
    options: PatchTaskOptions | None = None,
    *,
    on_batch: Callable[[str, BatchReport], None] | None = None,
) -> RetrievalResult | None:
    """Retrieves images of a class by the class's prototype.

    Where the data are not split, the first of the folds is queried and the others support it.

    Args:
        root: Folder or table, see `open_images`.
        backbones: The models.
        options: Everything else.
        on_batch: Called after every batch.

    Returns:
        The result; None on ranks other than the first.
    """
    options = options or PatchTaskOptions()
    images, records, embeddings = _embed(root, backbones, options, on_batch)
    if not embeddings:
        return None
    train, test = images.folds(options.num_folds, options.seed)[0]
    scores = []
    for label, features in embeddings.items():
        found = prototype_retrieval(
            features[train], images.labels[train], features[test], images.labels[test], options.depths
        )
        hits = (found.prediction == images.labels[test]).astype(np.float64)
        scores.append(
            RetrievalScores(
                model=label,
                accuracy=found.accuracy,
                accuracy_interval=bootstrap_interval(hits, seed=options.seed, over="queries"),
                mean_precision={str(k): float(values.mean()) for k, values in found.precision.items()},
                classes=tuple(
                    ClassRetrieval(
                        name=str(name),
                        num_support=int(found.num_support[index]),
                        num_queries=int(found.num_queries[index]),
                        precision={str(k): float(values[index]) for k, values in found.precision.items()},
                    )
                    for index, name in enumerate(found.classes)
                ),
            )
        )
    return RetrievalResult(
        dataset=_dataset(root),
        models=tuple(records.values()),
        comparisons=(),
        provenance=_provenance(root, images, options),
        notes=_notes(images),
        layout=images.layout,
        scores=tuple(scores),
    )


def _embed(
    root: str | Path,
    backbones: Sequence[Backbone],
    options: PatchTaskOptions,
    on_batch: Callable[[str, BatchReport], None] | None,
) -> tuple[LabelledImages, dict[str, ModelRecord], dict[str, NDArray[np.float32]]]:
    if not backbones:
        raise EvaluationError("no model to evaluate; name one with --model")
    images = open_images(root, options.layout)
    records, embeddings = {}, {}
    with Ranks.from_environment().joined() as ranks:
        choose_device(ranks.own_device(options.embedding.device))
        digest = images.digest()
        for label, backbone in unique_labels(backbones).items():
            embedded = embed_sources(
                {"images": images.source},
                {"images": digest},
                backbone,
                options.embedding,
                label=label,
                ranks=ranks,
                on_batch=on_batch,
            )
            records[label] = embedded.record
            if ranks.is_first:
                embeddings[label] = embedded.embeddings["images"]
    return images, records, embeddings


def _probe(
    probe: str, features: NDArray[np.float32], labels: NDArray[np.str_], fold: Fold, options: PatchTaskOptions
) -> ProbeResult:
    train, test = fold
    parts = features[train], labels[train], features[test], labels[test]
    if probe == "linear":
        return linear_probe(*parts, max_iter=options.max_iter)
    if probe == "knn":
        return knn_probe(*parts, k=options.num_neighbours)
    raise EvaluationError(f"unknown probe '{probe}'; choose linear or knn")


def _fold_record(fold: Fold, found: ProbeResult, images: LabelledImages) -> ClassificationFold:
    number = {name: index for index, name in enumerate(images.classes)}
    confusion = np.zeros((len(number), len(number)), dtype=np.int64)
    for truth, predicted in zip(images.labels[fold.test], found.prediction, strict=True):
        confusion[number[str(truth)], number[str(predicted)]] += 1
    return ClassificationFold(
        name=fold.name,
        num_train=len(fold.train),
        num_test=len(fold.test),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        **{metric: getattr(found, metric) for metric in _METRICS},
    )


def _compare(scores: Sequence[ClassificationScores], options: PatchTaskOptions) -> list[PairedComparison]:
    first: dict[str, ClassificationScores] = {}
    comparisons = []
    for score in scores:
        baseline = first.setdefault(score.probe, score)
        # a single split has no folds to compare
        if baseline is score or len(score.folds) < 2:
            continue
        for metric in _METRICS:
            values = [[getattr(fold, metric) for fold in one.folds] for one in (score, baseline)]
            comparisons.append(
                compare_paired(
                    values[0],
                    values[1],
                    metric=metric,
                    protocol=score.probe,
                    model=score.model,
                    baseline=baseline.model,
                    seed=options.seed,
                )
            )
    return comparisons


def _dataset(root: str | Path) -> str:
    path = Path(root).resolve()
    return path.stem if path.is_file() else path.name


def _provenance(root: str | Path, images: LabelledImages, options: PatchTaskOptions) -> Provenance:
    data = {f"{len(images.source)} images": images.digest(), **hash_files(Path(root), images.tables)}
    return collect_provenance(seed=options.seed, options=options, data=data)


def _notes(images: LabelledImages) -> tuple[str, ...]:
    if images.parts[0]:
        return ()
    if images.patients[0]:
        return ("The data are not split: folds are random over patients.",)
    return (
        "The data are not split and name no patients: images of one patient may lie in train and test parts alike, so "
        "the scores may be optimistic.",
    )
