"""Patches + model → embeddings, computed once for each content of the patches, weights and transform."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from timm.data.config import resolve_data_config
from tyro.conf import arg

from ..data import DataError, PatchSource
from ..runtime.atomic_file import remove_leftovers
from ..runtime.claim import claimed
from ..runtime.digest import tensors_sha256
from ..runtime.errors import EvaluationError, writing
from ..runtime.provenance import ModelRecord
from ..runtime.ranks import Ranks
from ..version import __version__
from .backbone import Backbone
from .embedding_store import read_barcodes, read_batches, read_embeddings
from .embeddings import BatchReport, EmbeddingSummary, ForwardOptions, write_embeddings
from .model_input import choose_device, choose_input_size
from .pooling import check_pooling

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(ForwardOptions):
    """How patches are embedded, and where embeddings are kept.

    Attributes:
        cache: Where embeddings are kept; timm_mvhybrid/embeddings in the user's cache folder by default.
    """

    cache: Annotated[Path | None, arg(metavar="DIR")] = None

    def check(self) -> None:
        """Finds out whether device and cache can be used, before models are built and data are read.

        Raises:
            EvaluationError: The device cannot be used.
            OutputError: The cache cannot be made.
        """
        choose_device(Ranks.from_environment().own_device(self.device))
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

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


def embed_sources(
    sources: Mapping[str, PatchSource],
    digests: Mapping[str, str],
    backbone: Backbone,
    options: EmbeddingOptions,
    *,
    label: str,
    ranks: Ranks,
    on_batch: Callable[[str, BatchReport], None] | None = None,
) -> tuple[ModelRecord, dict[str, NDArray[np.float32]]]:
    """Takes embeddings from the cache and computes those that are missing, divided among the ranks.

    The cache's files lie at ``<model>-<key>/<source>-<content>.h5``: the key is a hash of model, weights, transform and
    this package's version, the content that of the source's pixels. Each is complete or absent, so an interrupted run
    continues where it stopped. A file that does not fit its source is computed again.

    Args:
        sources: Name → patches; the same on every rank.
        digests: Name → SHA-256 of the patches.
        backbone: The model.
        options: How to embed.
        label: Names the model in the result.
        ranks: The processes that share the work.
        on_batch: Called with the source's name after every batch of this rank.

    Returns:
        The model and how it embedded, and source's name → (N, D), in the source's order; none on ranks other than the
        first.

    Raises:
        EvaluationError: If a rank cannot read what another one wrote.
        OutputError: If the cache cannot be written.
    """
    check_pooling(backbone.model, options.pool)
    weights = weights_digest(backbone)
    transforms = {name: transform_of(backbone, source, options) for name, source in sources.items()}
    files = {
        name: cache_file(options.folder, backbone.name, weights, transforms[name], name, digests[name])
        for name in sources
    }
    # every rank looks before any writes, so that all agree on what is missing
    missing = [name for name, source in sources.items() if not _fits(files[name], source)]
    ranks.gather(None)
    mine = [missing[index] for index in ranks.share([len(sources[name]) for name in missing])]
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
            found = _read(files[name], source)
            if found is None:
                raise EvaluationError(
                    f"{files[name]}: written and not readable; give all ranks the same `cache`"
                )
            embeddings[name] = found
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
    if _fits(file, source):
        return None
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    with claimed(file, wait=True):
        remove_leftovers(file)
        if _fits(file, source):
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


def _fits(file: Path, source: PatchSource) -> bool:
    """Finds out whether a file of the cache is there, whole and of this source; reads a few rows at a time."""
    if not file.is_file():
        return False
    try:
        return sum(map(len, read_batches(file))) == len(source) and read_barcodes(file) == source.barcodes
    except DataError:
        return False


def _read(file: Path, source: PatchSource) -> NDArray[np.float32] | None:
    """Reads a file of the cache, if it is there, whole and of this source."""
    if not file.is_file():
        return None
    try:
        found = read_embeddings(file)
    except DataError:
        return None
    fits = len(found.embeddings) == len(source) and found.barcodes == source.barcodes
    return found.embeddings if fits else None
