"""Several models, several sources → every model's embeddings of every source, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..data import PatchSource, source_digest
from ..runtime.errors import EvaluationError
from ..runtime.provenance import ModelRecord
from ..runtime.ranks import Ranks
from .backbone import Backbone
from .embedding_cache import EmbeddingOptions, embed_sources
from .embeddings import BatchReport
from .model_labels import unique_labels
from .pooling import Pooling, embedding_dim

Embeddings = dict[str, dict[str, NDArray[np.float32]]]
"""Model's label → source's name → (N, D)."""


def embedding_dims(
    backbones: Sequence[Backbone], pool: Pooling, given: Mapping[str, Mapping[str, NDArray[np.float32]]]
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
    """Embeds all sources by all models; under torchrun the ranks share the sources.

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
            or the device cannot be used.
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
            record, found = embed_sources(
                sources, digests, backbone, options, label=label, ranks=ranks, on_batch=on_batch
            )
            records.append(record)
            embeddings[label] = found
    return records, embeddings if ranks.is_first else {}


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


def _record(label: str, given: Mapping[str, NDArray[np.float32]]) -> ModelRecord:
    num_patches = sum(map(len, given.values()))
    return ModelRecord(
        label=label,
        name=label,
        weights="unknown",
        weights_sha256="unknown",
        embedding_dim=next(iter(given.values())).shape[1],
        num_patches=num_patches,
        num_cached=num_patches,
    )
