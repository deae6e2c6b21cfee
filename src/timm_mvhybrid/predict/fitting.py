"""Samples in the HEST layout + a backbone → a fitted predictor; all is checked before the first patch is embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cohorts.cohort import ExpressionCohort, read_cohort
from ..cohorts.hest_layout import HestTask, open_task
from ..data import DataError, PatchH5Source
from ..embed.backbone import Backbone
from ..embed.baselines import BLIND
from ..embed.embedding_cache import embed_models, embedding_dims
from ..embed.embeddings import BatchReport
from ..runtime.digest import file_sha256, hash_files
from ..runtime.errors import EvaluationError
from ..runtime.provenance import ModelRecord, collect_provenance
from ..runtime.ranks import Ranks
from .cohort_checks import check_studies, components_of
from .expression_predictor import ExpressionPredictor
from .options import FitOptions
from .prediction import EncoderRecord

RESOLUTION_TOLERANCE = 0.02
"""Fraction by which resolutions may differ and still count as the same."""


def fit_expression(
    root: str | Path,
    backbone: Backbone,
    options: FitOptions,
    *,
    weights_seed: int = 0,
    on_batch: Callable[[str, BatchReport], None] | None = None,
) -> ExpressionPredictor | None:
    """Fits a predictor on all samples of a task.

    Targets are log1p of raw counts. Patches are embedded once, and embeddings that the cache holds are not computed
    again. Under torchrun the ranks share the samples for embedding, and the first computes everything else.

    Args:
        root: The task's folder, or the folder of several tasks.
        backbone: The model whose features are taken.
        options: Everything else.
        weights_seed: Seed by which the backbone's weights were drawn, where they are random; the predictor records it.
        on_batch: Called with the sample's name after every batch.

    Returns:
        The predictor; None on ranks other than the first.

    Raises:
        DataError: A file cannot be used, a gene is not measured everywhere, or samples differ in size or resolution of
            their patches.
        EvaluationError: The data do not allow what was asked for, such as a single study.
    """
    options.embedding.check()
    predictor = ExpressionPredictor(
        alpha=options.alpha,
        num_components=options.num_components,
        level=options.level,
        calibration=options.calibration,
        far_level=options.far_level,
        num_resamples=options.num_resamples,
        seed=options.bootstrap_seed,
    )
    predictor.check_params()
    task = open_task(root, options.task)
    cohort = _read(task, options)
    method: Any = options.panel
    (genes,) = cohort.panels(
        [np.arange(len(cohort.sample_of))],
        method,
        options.num_genes,
        n_top_per_slide=options.n_top_per_slide,
    )
    folds = check_studies(cohort.study_of, options.alpha)
    if backbone.name in BLIND:
        raise EvaluationError(
            f"{backbone.name} sees no image, and so predicts nothing of a slide; name another model"
        )
    (dim,) = embedding_dims([backbone], options.embedding.pool, {}).values()
    components_of(options.num_components, dim, min(len(fold.train) for fold in folds))
    sources = {name: PatchH5Source(task.files[name][0]) for name in task.samples}
    patch_size_px, resolution = _common_patches(sources)

    digests = {name: file_sha256(source.path) for name, source in sources.items()}
    (record,), embedded = embed_models(
        sources, [backbone], options.embedding, digests=digests, on_batch=on_batch
    )
    if not Ranks.from_environment().is_first:
        return None
    features = np.concatenate([embedded[record.label][name] for name in sources])
    data = {f"patches/{name}.h5": digest for name, digest in digests.items()}
    return predictor.fit(
        features,
        cohort.log_counts(genes),
        studies=cohort.study_of,
        genes=genes,
        patients=cohort.patient_of if cohort.patients else None,
        encoder=_encoder(record, weights_seed, patch_size_px, resolution),
        provenance=collect_provenance(
            seed=options.bootstrap_seed,
            options=options,
            data=data | hash_files(task.path, cohort.files),
            generated=cohort.generated,
        ),
    )


def _read(task: HestTask, options: FitOptions) -> ExpressionCohort:
    listed = options.genes
    if listed is None and options.panel == "task":
        listed = task.panel
    return read_cohort(task, counts_layer=options.counts_layer, studies=options.studies, panel=listed)


def _common_patches(sources: Mapping[str, PatchH5Source]) -> tuple[int, float | None]:
    """Finds size and resolution of the patches, which all samples must share.

    Raises:
        DataError: They differ, or patches are not square.
    """
    first, *others = sources.values()
    if first.patch_size_px is None:
        raise DataError(f"{first.path}: its patches are not square; cut square ones")
    for source in others:
        if source.patch_size_px != first.patch_size_px:
            raise DataError(
                f"{source.path}: has patches of {source.patch_size_px} px, and {first.path.name} of "
                f"{first.patch_size_px} px; cut all at one size"
            )
        ours, theirs = source.resolution_um_per_px, first.resolution_um_per_px
        if (ours is None) != (theirs is None) or (
            ours is not None and theirs is not None and abs(ours / theirs - 1) > RESOLUTION_TOLERANCE
        ):
            raise DataError(
                f"{source.path}: states a resolution of {ours} µm/px, and {first.path.name} {theirs}; they may differ by "
                f"{RESOLUTION_TOLERANCE:.0%}: cut all at one resolution"
            )
    return first.patch_size_px, _middle([source.resolution_um_per_px for source in sources.values()])


def _middle(resolutions: Sequence[float | None]) -> float | None:
    known = [value for value in resolutions if value is not None]
    # rounded, because files state a factor and a pixel size, and their product is 0.5 up to rounding
    return round(float(np.median(known)), 6) if known else None


def _encoder(
    record: ModelRecord, weights_seed: int, patch_size_px: int, resolution: float | None
) -> EncoderRecord:
    return EncoderRecord(
        # where the folder lies is this machine's business
        name=f"local-dir:{Path(record.name).name}" if record.name.startswith("local-dir:") else record.name,
        weights=record.weights,
        weights_sha256=record.weights_sha256,
        seed=weights_seed if record.weights == "random" else None,
        transform=record.transform,
        patch_size_px=patch_size_px,
        resolution_um_per_px=resolution,
    )


@dataclass(frozen=True, kw_only=True)
class FitSummary:
    """What was fitted.

    Attributes:
        output: The predictor's folder.
        model: The model's timm name.
        num_genes: Genes that it predicts.
        num_predictable: Genes whose correlation in left-out studies has an interval above 0.
        num_studies: Studies of the fit.
        alpha: Ridge penalty.
        num_components: Principal components.
        mean_r: Correlation in left-out studies, mean over genes; None where no gene has one.
    """

    output: str
    model: str
    num_genes: int
    num_predictable: int
    num_studies: int
    alpha: float
    num_components: int
    mean_r: float | None

    @staticmethod
    def of(predictor: ExpressionPredictor, output: Path) -> FitSummary:
        """Sums up a predictor that was saved.

        Raises:
            EvaluationError: It does not know its model.
        """
        if predictor.encoder_ is None:
            raise EvaluationError(f"{output}: the predictor does not know its model")
        r = predictor.reliability_.r
        return FitSummary(
            output=str(output),
            model=predictor.encoder_.name,
            num_genes=len(predictor.genes_),
            num_predictable=int(predictor.reliability_.predictable.sum()),
            num_studies=len(predictor.studies_),
            alpha=predictor.alpha_,
            num_components=predictor.num_components_,
            mean_r=None if np.isnan(r).all() else float(np.nanmean(r)),
        )
