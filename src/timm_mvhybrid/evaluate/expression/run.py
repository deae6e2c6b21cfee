"""HEST layout + backbones → the result of the expression task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import ExpressionCohort, check_panel
from ...cohorts.csv_tables import read_genes, read_studies
from ...cohorts.gene_panels import PanelMethod
from ...cohorts.hest_layout import HestSample, HestTask, open_task, read_sample
from ...data import DataError, PatchH5Source
from ...embed.backbone import Backbone
from ...embed.embedding_cache import EmbeddingOptions, embed_sources
from ...embed.embeddings import BatchReport
from ...embed.model_input import choose_device
from ...embed.model_labels import unique_labels
from ...report.results import ExpressionResult
from ...runtime.digest import file_sha256
from ...runtime.errors import EvaluationError
from ...runtime.provenance import ModelRecord, collect_provenance, hash_files
from ...runtime.ranks import Ranks
from ...runtime.stage import OnStage
from .protocols import PanelChoice, Protocol, choose_protocols
from .score import ProbeOptions, ProtocolOutcome, compute_drops, score_protocol


@dataclass(frozen=True, kw_only=True)
class ExpressionOptions:
    """The expression task.

    Args:
        task: Name of one of several tasks in the folder.
        studies: CSV with sample_id, study and, if known, patient.
        counts_layer: The layer of each h5ad that holds the counts, or `raw`; None takes X.
        protocols: `csv`, `random`, `loso`, `patient`; none takes all that the data allow.
        panel: `hvg`, `mean`, `hmhvg`, `task` for the task's own var_<k>genes.json, or another such file.
        num_genes: Genes to select.
        select_on_all_samples: Select genes once on all samples, as HEST does, instead of on each fold's train part.
        n_top_per_slide: For `hmhvg`.
        probe: Ridge probe and scores.
        embedding: How patches are embedded.
    """

    task: str | None = None
    studies: Path | None = None
    counts_layer: str | None = None
    protocols: tuple[str, ...] = ()
    panel: PanelMethod | Literal["task"] | Path = "hvg"
    num_genes: int = 50
    select_on_all_samples: bool = False
    n_top_per_slide: int = 2000
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    embedding: EmbeddingOptions = field(default_factory=EmbeddingOptions)


def evaluate_expression(
    root: str | Path,
    backbones: Sequence[Backbone],
    options: ExpressionOptions | None = None,
    *,
    embeddings: Mapping[str, Mapping[str, NDArray[np.float32]]] | None = None,
    on_batch: Callable[[str, BatchReport], None] | None = None,
    on_stage: OnStage = None,
) -> ExpressionResult | None:
    """Predicts expression from frozen embeddings under every protocol.

    Under torchrun the ranks share the samples for embedding, and the first computes everything else.

    Args:
        root: The task's folder, or the folder of several tasks.
        backbones: The models; the first is the one that others are compared with.
        options: Everything else.
        embeddings: Model's label → sample → (spots, D), in the order of the patch h5, for models that need no
            embedding here, such as those of other libraries; they come first.
        on_batch: Called with the sample's name after every batch.
        on_stage: Called when a model is scored under a protocol.

    Returns:
        The result; None on ranks other than the first.

    Raises:
        EvaluationError: If there is no model, or a fold cannot be fitted.
    """
    options = options or ExpressionOptions()
    if not backbones and not embeddings:
        raise EvaluationError("no model to evaluate; name one with --model")
    task = open_task(root, options.task)
    with Ranks.from_environment().joined() as ranks:
        choose_device(ranks.own_device(options.embedding.device))
        sources = {name: PatchH5Source(task.files[name][0]) for name in task.samples}
        digests = {name: file_sha256(task.files[name][0]) for name in task.samples}
        records, matrices = _given(task, sources, embeddings or {})
        inputs = _read(task, options) if ranks.is_first else None
        for label, backbone in unique_labels(backbones, taken=records).items():
            embedded = embed_sources(
                sources, digests, backbone, options.embedding, label=label, ranks=ranks, on_batch=on_batch
            )
            records[label] = embedded.record
            if ranks.is_first:
                matrices[label] = np.concatenate([embedded.embeddings[name] for name in task.samples])
    return None if inputs is None else _score(task, inputs, records, matrices, digests, options, on_stage)


def _given(
    task: HestTask,
    sources: Mapping[str, PatchH5Source],
    embeddings: Mapping[str, Mapping[str, NDArray[np.float32]]],
) -> tuple[dict[str, ModelRecord], dict[str, NDArray[np.float32]]]:
    records, matrices = {}, {}
    for label, by_sample in embeddings.items():
        for name in task.samples:
            num_given = len(by_sample.get(name, ()))
            if num_given != len(sources[name]):
                raise EvaluationError(
                    f"model {label}, sample '{name}': {num_given} embeddings of {len(sources[name])} patches"
                )
        matrices[label] = np.concatenate([np.asarray(by_sample[name], np.float32) for name in task.samples])
        records[label] = ModelRecord(
            label=label,
            name=label,
            weights="unknown",
            weights_sha256="unknown",
            embedding_dim=matrices[label].shape[1],
            num_patches=len(matrices[label]),
            num_cached=len(matrices[label]),
        )
    return records, matrices


@dataclass(frozen=True, eq=False, kw_only=True)
class _Inputs:
    """What is read and checked before time is spent on embedding."""

    samples: list[HestSample]
    cohort: ExpressionCohort
    panel: PanelChoice
    panel_name: str
    protocols: list[Protocol]
    files: list[Path]


def _read(task: HestTask, options: ExpressionOptions) -> _Inputs:
    samples = [read_sample(task, name, options.counts_layer) for name in task.samples]
    panel, panel_name, panel_file = _panel(task, options)
    if panel.method is None:
        check_panel(panel.genes, samples, panel_name)
    studies: dict[str, str] = {}
    patients: dict[str, str] = {}
    if options.studies is not None:
        studies, patients = read_studies(options.studies, task.samples)
    cohort = ExpressionCohort.of(samples, splits=task.splits, studies=studies, patients=patients)
    files = [sample.expression for sample in samples]
    files += [file for file in (options.studies, panel_file) if file is not None]
    return _Inputs(
        samples=samples,
        cohort=cohort,
        panel=panel,
        panel_name=panel_name,
        protocols=choose_protocols(cohort, options.protocols),
        files=[*files, *sorted(task.path.glob("splits/*.csv"))],
    )


def _check_finite(label: str, matrix: NDArray[np.float32], samples: Sequence[HestSample]) -> None:
    finite = np.isfinite(matrix).all(axis=1)
    if finite.all():
        return
    row = int((~finite).argmax())
    for sample in samples:
        if row < len(sample.barcodes):
            raise EvaluationError(
                f"model {label}, sample '{sample.sample_id}', barcode '{sample.barcodes[row]}': the embedding holds NaN "
                "or infinite values; check the weights, or embed in float32"
            )
        row -= len(sample.barcodes)


def _score(
    task: HestTask,
    inputs: _Inputs,
    records: Mapping[str, ModelRecord],
    matrices: Mapping[str, NDArray[np.float32]],
    patch_digests: Mapping[str, str],
    options: ExpressionOptions,
    on_stage: OnStage,
) -> ExpressionResult:
    for label, matrix in matrices.items():
        _check_finite(label, matrix, inputs.samples)
    cohort, panel = inputs.cohort, inputs.panel
    outcomes = [
        score_protocol(cohort, matrices, protocol, panel, options.probe, on_stage)
        for protocol in inputs.protocols
    ]
    scores = [score for outcome in outcomes for score in outcome.scores]
    return ExpressionResult(
        dataset=task.path.resolve().name,
        models=tuple(records.values()),
        comparisons=tuple(comparison for outcome in outcomes for comparison in outcome.comparisons),
        provenance=collect_provenance(
            seed=options.probe.seed,
            options=options,
            data={
                **{f"patches/{name}.h5": digest for name, digest in patch_digests.items()},
                **hash_files(task.path, inputs.files),
            },
            generated=any(sample.generated for sample in inputs.samples),
        ),
        notes=tuple(_notes(cohort, outcomes, options)),
        panel=inputs.panel_name,
        panel_size=len(panel.genes) if panel.method is None else panel.k,
        panel_selected_on=panel.selected_on,
        preset=options.probe.preset,
        nan_policy=options.probe.nan_policy,
        scores=tuple(scores),
        drops=tuple(compute_drops(scores)),
        maps=tuple(one for outcome in outcomes for one in outcome.maps),
        samples={name: cohort.studies.get(name, "") for name in task.samples},
    )


def _panel(task: HestTask, options: ExpressionOptions) -> tuple[PanelChoice, str, Path | None]:
    """Resolves the panel: how genes are chosen, its name, and its file if it has one."""
    if options.panel in get_args(PanelMethod):
        choice = PanelChoice(
            method=options.panel,  # type: ignore[arg-type]
            k=options.num_genes,
            on_all_samples=options.select_on_all_samples,
            n_top_per_slide=options.n_top_per_slide,
        )
        return choice, str(options.panel), None
    if options.panel == "task":
        found = sorted(task.path.glob("var_*genes.json"))
        if len(found) != 1:
            raise DataError(
                f"{task.path}: has {len(found)} files var_<k>genes.json; name one with --panel, or use --panel hvg"
            )
        file = found[0]
    else:
        file = Path(options.panel)
    return PanelChoice(method=None, genes=tuple(read_genes(file))), file.name, file


def _notes(
    cohort: ExpressionCohort, outcomes: Sequence[ProtocolOutcome], options: ExpressionOptions
) -> list[str]:
    notes = []
    if cohort.num_missing_genes:
        notes.append(
            f"{cohort.num_missing_genes} genes are not measured in every sample and were left out before any selection."
        )
    constant = sum(
        fold.num_constant for outcome in outcomes for score in outcome.scores for fold in score.folds
    )
    if constant:
        notes.append(
            f"{constant} times a gene is constant in a fold, measured or predicted, and has no correlation there "
            f"(policy: {options.probe.nan_policy})."
        )
    if options.select_on_all_samples and options.panel in get_args(PanelMethod):
        notes.append("Genes were selected on all samples, test parts included, as HEST does.")
    if options.panel not in get_args(PanelMethod):
        notes.append("Genes come from a file; whether they were chosen on test samples is not known here.")
    for study in sorted(set(cohort.studies.values())):
        members = [name for name, its in cohort.studies.items() if its == study]
        if len(members) == 1:
            notes.append(f"Study '{study}' has a single sample, '{members[0]}'.")
    solvers = set().union(*(outcome.solvers for outcome in outcomes))
    if "exact" in solvers:
        notes.append("The ridge regression was solved exactly, without the early stopping of HEST's recipe.")
    if any(outcome.scores and outcome.scores[0].protocol == "random" for outcome in outcomes):
        notes.append(
            "In random folds neighbouring spots lie in train and test parts alike, so their scores are optimistic."
        )
    return notes
