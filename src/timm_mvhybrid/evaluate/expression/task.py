"""Expression prediction: HEST layout + backbones → scores under every protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ...cohorts.cohort import PanelMethod, read_cohort
from ...cohorts.gene_groups import read_gene_groups
from ...cohorts.hest_layout import open_task
from ...data import PatchH5Source
from ...embed.backbone import Backbone
from ...embed.baselines import BASELINES, POSITION, position_features
from ...embed.embedding_cache import embed_models, embedding_dims
from ...report import Metric, Result, ScoreSheet
from ...runtime.digest import file_sha256, hash_files
from ...runtime.ranks import Ranks
from ...runtime.stage import OnStage
from ..task import OnBatch, Progress, Task, register_task
from .groups import group_metrics
from .options import ExpressionCommand, ExpressionOptions
from .plan import make_plan
from .scoring import score_protocol
from .showing import ExpressionPresentation

METRICS = {
    "pcc": Metric(label="PCC"),
    "pcc10": Metric(label="PCC-10"),
    "mse": Metric(label="MSE", higher=False),
    "mae": Metric(label="MAE", higher=False),
    "r2": Metric(label="R²"),
}
_NOT_COMPARED = ("r2",)


def evaluate_expression(
    root: str | Path,
    backbones: Sequence[Backbone],
    options: ExpressionOptions | None = None,
    *,
    embeddings: Mapping[str, Mapping[str, NDArray[np.float32]]] | None = None,
    on_batch: OnBatch = None,
    on_stage: OnStage = None,
) -> Result | None:
    """Predicts expression from frozen embeddings under every protocol.

    Targets are read once and checked against all that was asked for, then patches are embedded once, then everything
    is scored once. Under torchrun the ranks share the samples for embedding, and the first computes everything else.

    Args:
        root: The task's folder, or the folder of several tasks.
        backbones: The models; the first is the one that others are compared with.
        options: Everything else.
        embeddings: Model's label → sample → (spots, D), in the order of the patch h5, for models that need no
            embedding here, such as those of other libraries; they come first.
        on_batch: Called with the sample's name after every batch.
        on_stage: Called when a model is scored under a protocol.

    Returns:
        The result; None on ranks other than the first. ``arrays`` holds ``maps``, each an ``ExpressionMap``, and
        ``studies``, sample → study.

    Raises:
        DataError: A file cannot be used.
        EvaluationError: There is no model, or the data do not allow what was asked for.
    """
    options, embeddings = options or ExpressionOptions(), embeddings or {}
    options.embedding.check()
    task = open_task(root, options.task)
    cohort = plan = None
    groups: dict[str, str] = {}
    if Ranks.from_environment().is_first:
        panel = None
        if options.panel not in get_args(PanelMethod):
            panel = task.panel if options.panel == "task" else Path(options.panel)
        cohort = read_cohort(task, counts_layer=options.counts_layer, studies=options.studies, panel=panel)
        dims = embedding_dims(backbones, options.embedding.pool, embeddings)
        plan = make_plan(cohort, options, dims, panel)
        groups = _gene_groups([task.files[name][1] for name in task.samples], options.gene_groups)

    sources = {name: PatchH5Source(task.files[name][0]) for name in task.samples}
    digests = {name: file_sha256(source.path) for name, source in sources.items()}
    data = {f"patches/{name}.h5": digest for name, digest in digests.items()}
    if cohort is not None:
        data |= hash_files(task.path, cohort.files)
    models, embedded = embed_models(
        sources,
        backbones,
        options.embedding,
        digests=digests,
        given=embeddings,
        on_batch=on_batch,
    )
    if cohort is None or plan is None:
        return None
    if POSITION in embedded:
        embedded[POSITION] = position_features(sources)
        width = next(iter(embedded[POSITION].values())).shape[1]
        models = [replace(one, embedding_dim=width) if one.label == POSITION else one for one in models]
    features = {
        label: np.concatenate([by_sample[name] for name in sources]) for label, by_sample in embedded.items()
    }

    probe = options.probe
    metrics = METRICS | group_metrics({gene: groups[gene] for gene in groups if gene in plan.genes})
    sheet = ScoreSheet(
        metrics,
        ddof=probe.ddof,
        seed=probe.seed,
        num_resamples=probe.num_resamples,
        missing_as_zero=probe.nan_policy == "zero",
    )
    outcomes = [
        score_protocol(cohort, one, features, probe, sheet, groups, on_stage) for one in plan.protocols
    ]
    notes = []
    constant = sum(fold.facts["num_constant"] for fold in sheet.folds)
    if constant:
        notes.append(
            f"{constant} times a gene is constant in a fold, measured or predicted, and has no correlation there "
            f"(policy: {probe.nan_policy})."
        )
    if any("exact" in solvers for _, solvers in outcomes):
        notes.append("The ridge regression was solved exactly, without the early stopping of HEST's recipe.")
    return sheet.result(
        task=Expression.name,
        dataset=task.path.resolve().name,
        models=models,
        settings={**plan.panel, "preset": probe.preset, "nan_policy": probe.nan_policy},
        arrays={
            "maps": [one for maps, _ in outcomes for one in maps],
            "studies": {name: cohort.studies.get(name, "") for name in sources},
        },
        options=options,
        data=data,
        generated=cohort.generated,
        notes=notes + plan.notes,
        compared=[name for name in metrics if name not in _NOT_COMPARED],
    )


def _gene_groups(files: Sequence[Path], wanted: str) -> dict[str, str]:
    if wanted == "none":
        return {}
    return read_gene_groups(files, None if wanted == "auto" else wanted)


class Expression(ExpressionPresentation, Task[ExpressionCommand]):
    """Predict gene expression from patches, on data in the HEST layout."""

    name = "expression"
    options = ExpressionCommand

    def num_images(self, options: ExpressionCommand) -> int:
        """Counts the patches of all samples."""
        files = open_task(options.root, options.options.task).files
        return sum(len(PatchH5Source(patches)) for patches, _ in files.values())

    def run(self, options: ExpressionCommand, progress: Progress) -> Result | None:
        """Builds the models and evaluates them."""
        options.options.embedding.check()
        return evaluate_expression(
            options.root,
            options.models.load(options.options.probe.seed, progress.on_warning, shown=BASELINES),
            options.options,
            on_batch=progress.on_batch,
            on_stage=progress.on_stage,
        )


register_task(Expression())
