"""Several models, several sources → every model's embeddings of every source, each computed once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from timm.data.config import resolve_data_config
from tyro.conf import arg

from ..data import DataError, PatchSource, source_digest
from ..runtime.atomic_file import claimed, make_folder, remove_leftovers
from ..runtime.errors import EvaluationError
from ..runtime.provenance import ModelRecord
from ..runtime.ranks import Ranks
from ..runtime.tensor_digest import tensors_sha256
from ..version import __version__
from .backbone import Backbone
from .baselines import BLIND
from .embedding_store import holds, read_embeddings
from .embeddings import BatchReport, EmbeddingSummary, ForwardOptions, write_embeddings
from .half_types import DTypeName
from .model_input import choose_device, choose_input_size
from .pooling import Pooling, check_pooling, embedding_dim

Embeddings = dict[str, dict[str, NDArray[np.float32]]]
"""Model's label → source's name → (N, D)."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(ForwardOptions):
    """How patches are embedded, and where embeddings are kept.

    Attributes:
        dtype: Autocast type; embeddings are stored as float32.
        cache: Where embeddings are kept; timm_mvhybrid/embeddings in the user's cache folder by default.
    """

    # the cache is keyed by it, and samples must not differ in it
    dtype: DTypeName = "float32"
    cache: Annotated[Path | None, arg(metavar="DIR")] = None

    def check(self) -> None:
        """Finds out whether device and cache can be used, before models are built and data are read.

        Raises:
            EvaluationError: The device cannot be used.
            OutputError: The cache cannot be made.
        """
        choose_device(Ranks.from_environment().own_device(self.device))
        make_folder(self.folder)

    @property
    def folder(self) -> Path:
        """The cache's folder."""
        if self.cache is not None:
            return self.cache
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home, "timm_mvhybrid", "embeddings")


def weights_digest(backbone: Backbone) -> str:
    """Identifies weights by the SHA-256 of their file, or of their values where there is no file."""
    if _SHA256.fullmatch(backbone.weights_sha256):
        return backbone.weights_sha256
    return tensors_sha256(backbone.model.state_dict())


def unique_labels(backbones: Sequence[Backbone], taken: Collection[str] = ()) -> dict[str, Backbone]:
    """Labels models by name, and by their weights' file where a name occurs more than once.

    Raises:
        EvaluationError: If there is no model, or two would have the same label.
    """
    if not backbones and not taken:
        raise EvaluationError("no model to evaluate; name one with `model`")
    names = [backbone.name for backbone in backbones]
    labels: dict[str, Backbone] = {}
    for backbone in backbones:
        label = backbone.name
        if names.count(label) > 1:
            label = f"{label} ({backbone.weights})"
        if label in labels or label in taken:
            raise EvaluationError(
                f"model '{label}' is given twice; give different files as `checkpoint`, or different names"
            )
        labels[label] = backbone
    return labels


def embedding_dims(
    backbones: Sequence[Backbone],
    pool: Pooling,
    given: Mapping[str, Mapping[str, NDArray[np.float32]]],
) -> dict[str, int]:
    """Says how wide every model's embeddings will be, before there are any.

    Args:
        backbones: The models.
        pool: How features become one vector.
        given: As in ``embed_models``.

    Returns:
        Model's label → length of an embedding.

    Raises:
        EvaluationError: There is no model, or two cannot be told apart.
    """
    labels = unique_labels(backbones, taken=given)
    dims = {label: np.shape(found)[-1] for label, one in given.items() for found in list(one.values())[:1]}
    return dims | {label: embedding_dim(one.model, pool) for label, one in labels.items()}


def embed_models(
    sources: Mapping[str, PatchSource],
    backbones: Sequence[Backbone],
    options: EmbeddingOptions,
    *,
    digests: Mapping[str, str] | None = None,
    given: Mapping[str, Mapping[str, NDArray[np.float32]]] | None = None,
    on_batch: Callable[[str, BatchReport], None] | None = None,
) -> tuple[list[ModelRecord], Embeddings]:
    """Takes embeddings from the cache and computes those that are missing, divided among torchrun's ranks.

    The cache's files lie at ``<model>-<key>/<source>-<content>.h5``: the key is a hash of model, weights, transform and
    this package's version, the content that of the source's pixels. Each is complete or absent, so an interrupted run
    continues where it stopped. A file that does not fit its source is computed again.

    Args:
        sources: Name → patches; the same on every rank.
        backbones: The models.
        options: How to embed.
        digests: Name → SHA-256 of the patches, by which the cache knows them; None takes `source_digest`.
        given: Model's label → source's name → (N, D), in the source's order, of models that need no embedding here,
            such as those of other libraries; they come first.
        on_batch: Called with the source's name after every batch of this rank.

    Returns:
        What each model is and how it embedded, and its embeddings; none of the latter on ranks other than the first.

    Raises:
        EvaluationError: There is no model, two cannot be told apart, there is not one given embedding for each patch,
            the device cannot be used, or a rank cannot read what another one wrote.
        OutputError: The cache cannot be written.
    """
    options.check()
    given = given or {}
    labels = unique_labels(backbones, taken=given)
    embeddings: Embeddings = {label: _checked(label, one, sources) for label, one in given.items()}
    records = [_record(label, one) for label, one in embeddings.items()]
    if digests is None:
        digests = {name: source_digest(source) for name, source in sources.items()}
    with Ranks.from_environment().joined() as ranks:
        for label, backbone in labels.items():
            if backbone.name in BLIND:
                embeddings[label] = {
                    name: np.ones((len(one), 1), np.float32) for name, one in sources.items()
                }
                records.append(_record(label, embeddings[label], backbone.weights))
                continue
            record, embeddings[label] = _embed_sources(
                label, backbone, sources, digests, options, ranks, on_batch
            )
            records.append(record)
    return records, embeddings if ranks.is_first else {}


def _embed_sources(
    label: str,
    backbone: Backbone,
    sources: Mapping[str, PatchSource],
    digests: Mapping[str, str],
    options: EmbeddingOptions,
    ranks: Ranks,
    on_batch: Callable[[str, BatchReport], None] | None,
) -> tuple[ModelRecord, dict[str, NDArray[np.float32]]]:
    """Embeds all sources by one model; the embeddings are on the first rank alone."""
    check_pooling(backbone.model, options.pool)
    weights = weights_digest(backbone)
    transforms = {name: transform_of(backbone, source, options) for name, source in sources.items()}
    files = {
        name: cache_file(options.folder, backbone.name, weights, transforms[name], name, digests[name])
        for name in sources
    }
    names = list(sources)
    mine = [names[index] for index in ranks.share([len(source) for source in sources.values()])]
    own_options = replace(options, device=ranks.own_device(options.device))
    written = [
        embed_into_cache(
            sources[name],
            backbone,
            files[name],
            own_options,
            on_batch=None if on_batch is None else partial(on_batch, name),
        )
        for name in mine
    ]
    summaries = [summary for summary in written if summary is not None]
    everywhere: list[EmbeddingSummary] = [summary for part in ranks.gather(summaries) for summary in part]
    embeddings: dict[str, NDArray[np.float32]] = {}
    if ranks.is_first:
        for name, source in sources.items():
            try:
                found = read_embeddings(files[name])
            except DataError:
                found = None
            if found is None or len(found.embeddings) != len(source) or found.barcodes != source.barcodes:
                raise EvaluationError(
                    f"{files[name]}: written and not readable; give all ranks the same `cache`"
                )
            embeddings[name] = found.embeddings
    seconds = sum(summary.seconds for summary in everywhere)
    waited = sum(summary.seconds * summary.data_wait_share for summary in everywhere)
    num_patches = sum(len(source) for source in sources.values())
    record = ModelRecord(
        label=label,
        name=backbone.name,
        weights=backbone.weights,
        weights_sha256=weights,
        embedding_dim=next((matrix.shape[1] for matrix in embeddings.values()), 0),
        transform=next(iter(transforms.values()), {}),
        num_patches=num_patches,
        num_cached=num_patches - sum(summary.num_patches for summary in everywhere),
        seconds=seconds,
        data_wait_share=waited / seconds if seconds else float("nan"),
    )
    return record, embeddings


def embed_into_cache(
    source: PatchSource,
    backbone: Backbone,
    file: Path,
    options: EmbeddingOptions,
    *,
    on_batch: Callable[[BatchReport], None] | None = None,
) -> EmbeddingSummary | None:
    """Embeds a source into a file of the cache, unless the file is there, whole and of this source.

    Where another process is writing the same file, this one waits for it. What a killed one left is removed.

    Args:
        source: The patches.
        backbone: The model.
        file: What ``cache_file`` names.
        options: How to embed.
        on_batch: Called after every batch.

    Returns:
        What was done; None where the file was there.

    Raises:
        DataError: As ``embed``.
        EvaluationError: As ``embed``.
        OutputError: The cache cannot be written.
    """
    # before the claim, so that a cache that may only be read serves
    if holds(file, source):
        return None
    make_folder(file.parent)
    with claimed(file, wait=True):
        remove_leftovers(file)
        if holds(file, source):
            return None
        return write_embeddings(source, backbone, file, **options.arguments(), on_batch=on_batch)


def transform_of(backbone: Backbone, source: PatchSource, options: EmbeddingOptions) -> dict[str, Any]:
    """Says how patches become what enters a model, and its features one vector; the cache is keyed by it."""
    config = resolve_data_config({}, model=backbone.model)
    return {
        "input_size_px": list(choose_input_size(backbone.model, source.patch_size_px, options.input_size)),
        "mean": [float(value) for value in config["mean"]],
        "std": [float(value) for value in config["std"]],
        "global_pool": options.pool,
        "dtype": options.dtype,
    }


def cache_file(
    folder: Path, model: str, weights: str, transform: dict[str, Any], source: str, digest: str
) -> Path:
    """Names the file that keeps the embeddings of a source.

    Args:
        folder: The cache.
        model: Timm name of the model.
        weights: Their digest, see ``weights_digest``.
        transform: What ``transform_of`` gives.
        source: Name of the source.
        digest: SHA-256 of its patches.
    """
    key = {"model": model, "weights": weights, "transform": transform, "version": __version__}
    hashed = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    safe_model, safe_source = (re.sub(r"[^\w.-]+", "_", name) for name in (model, source))
    return folder / f"{safe_model}-{hashed[:16]}" / f"{safe_source}-{digest[:16]}.h5"


def _checked(
    label: str, given: Mapping[str, NDArray[np.float32]], sources: Mapping[str, PatchSource]
) -> dict[str, NDArray[np.float32]]:
    """Refuses embeddings that are not one finite vector for each patch."""
    found = {name: np.asarray(given.get(name, ()), np.float32) for name in sources}
    for name, source in sources.items():
        if len(found[name]) != len(source):
            raise EvaluationError(
                f"model {label}, sample '{name}': {len(found[name])} embeddings of {len(source)} patches"
            )
        if found[name].ndim != 2:
            raise EvaluationError(
                f"model {label}, sample '{name}': embeddings of shape {found[name].shape}; they must be (patches, dim)"
            )
        finite = np.isfinite(found[name]).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            patch = f"patch {row}" if source.barcodes is None else f"barcode '{source.barcodes[row]}'"
            raise EvaluationError(
                f"model {label}, sample '{name}', {patch}: the embedding holds NaN or infinite values; check the "
                "weights, or embed in float32"
            )
    return found


def _record(label: str, given: Mapping[str, NDArray[np.float32]], weights: str = "unknown") -> ModelRecord:
    num_patches = sum(map(len, given.values()))
    return ModelRecord(
        label=label,
        name=label,
        weights=weights,
        weights_sha256=weights,
        embedding_dim=next(iter(given.values())).shape[1],
        num_patches=num_patches,
        num_cached=num_patches,
    )
