"""Patches + model → embeddings, computed once for each content of the patches, weights and transform."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from timm.data.config import resolve_data_config
from tyro.conf import arg

from ..data import DataError, PatchSource
from ..runtime.digest import tensors_sha256
from ..runtime.errors import EvaluationError, writing
from ..runtime.provenance import ModelRecord
from ..runtime.ranks import Ranks
from ..version import __version__
from .backbone import Backbone
from .embedding_store import read_embeddings
from .embeddings import BatchReport, EmbeddingSummary, ForwardOptions, embed
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
    """Identifies weights by their file, or by their values where there is no file.

    Returns:
        SHA-256 in hex.
    """
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
    transforms = {name: _transform(backbone, source, options) for name, source in sources.items()}
    files = {
        name: _cache_file(options.folder, backbone.name, weights, transforms[name], name, digests[name])
        for name in sources
    }
    # every rank looks before any writes, so that all agree on what is missing
    missing = [name for name, source in sources.items() if _read(files[name], source) is None]
    ranks.gather(None)
    mine = ranks.share([len(sources[name]) for name in missing])
    summaries = []
    for name in (missing[index] for index in mine):
        with writing(files[name].parent):
            files[name].parent.mkdir(parents=True, exist_ok=True)
        summaries.append(
            embed(
                sources[name],
                backbone,
                files[name],
                **options.arguments() | {"device": ranks.own_device(options.device)},
                overwrite=True,
                # another evaluation of the same patches would write the same file
                exclusive=False,
                on_batch=None if on_batch is None else partial(on_batch, name),
            )
        )
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


def _transform(backbone: Backbone, source: PatchSource, options: EmbeddingOptions) -> dict[str, Any]:
    config = resolve_data_config({}, model=backbone.model)
    return {
        "input_size_px": list(choose_input_size(backbone.model, source.patch_size_px, options.input_size)),
        "mean": [float(value) for value in config["mean"]],
        "std": [float(value) for value in config["std"]],
        "global_pool": options.pool,
        "dtype": options.dtype,
    }


def _cache_file(
    folder: Path, model: str, weights: str, transform: dict[str, Any], source: str, digest: str
) -> Path:
    key = {"model": model, "weights": weights, "transform": transform, "version": __version__}
    hashed = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    safe_model, safe_source = (re.sub(r"[^\w.-]+", "_", name) for name in (model, source))
    return folder / f"{safe_model}-{hashed[:16]}" / f"{safe_source}-{digest[:16]}.h5"


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
