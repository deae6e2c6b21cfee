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

Embeddings = dict[str, dict[str, NDArray[np.float32]]]
"""Model's label → source's name → (N, D)."""


def embed_models(
    sources: Mapping[str, PatchSource],
    backbones: Sequence[Backbone],
    options: EmbeddingOptions,
    *,
    digests: Mapping[str, str] | None = None,
    on_batch: Callable[[str, BatchReport], None] | None = None,
) -> tuple[list[ModelRecord], Embeddings]:
    """Embeds all sources by all models; under torchrun the ranks share the sources.

    Args:
        sources: Name → patches; the same on every rank.
        backbones: The models.
        options: How to embed.
        digests: Name → SHA-256 of the patches, by which the cache knows them; None takes `source_digest`.
        on_batch: Called with the source's name after every batch of this rank.

    Returns:
        What each model is and how it embedded, and its embeddings; none of the latter on ranks other than the first.

    Raises:
        EvaluationError: There is no model, two cannot be told apart, or the device cannot be used.
        OutputError: The cache cannot be written.
    """
    options.check()
    if not backbones:
        raise EvaluationError("no model to evaluate; name one with `model`")
    labels = unique_labels(backbones)
    if digests is None:
        digests = {name: source_digest(source) for name, source in sources.items()}
    records: list[ModelRecord] = []
    embeddings: Embeddings = {}
    with Ranks.from_environment().joined() as ranks:
        for label, backbone in labels.items():
            record, found = embed_sources(
                sources, digests, backbone, options, label=label, ranks=ranks, on_batch=on_batch
            )
            records.append(record)
            if ranks.is_first:
                embeddings[label] = found
    return records, embeddings


def given_embeddings(
    embeddings: Mapping[str, Mapping[str, NDArray[np.float32]]], sources: Mapping[str, PatchSource]
) -> tuple[list[ModelRecord], Embeddings]:
    """Takes embeddings that were made elsewhere, such as by models of other libraries.

    Args:
        embeddings: Model's label → source's name → (N, D), in the source's order.
        sources: Name → patches.

    Raises:
        EvaluationError: There is not one embedding for each patch.
    """
    records: list[ModelRecord] = []
    found: Embeddings = {}
    for label, by_source in embeddings.items():
        for name, source in sources.items():
            num_given = len(by_source.get(name, ()))
            if num_given != len(source):
                raise EvaluationError(
                    f"model {label}, sample '{name}': {num_given} embeddings of {len(source)} patches"
                )
        found[label] = {name: np.asarray(by_source[name], np.float32) for name in sources}
        num_patches = sum(map(len, sources.values()))
        records.append(
            ModelRecord(
                label=label,
                name=label,
                weights="unknown",
                weights_sha256="unknown",
                embedding_dim=next(iter(found[label].values())).shape[1],
                num_patches=num_patches,
                num_cached=num_patches,
            )
        )
    return records, found
