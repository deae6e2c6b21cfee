"""What the tasks on labelled patches share: their data, embedded by every model, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, arg

from ..cohorts.labelled_images import LabelledImages, Layout, open_images
from ..embed.backbone import Backbone
from ..embed.embedding_cache import EmbeddingOptions
from ..embed.models import embed_models
from ..runtime.errors import EvaluationError, check_seed
from ..runtime.provenance import ModelRecord, hash_files
from .arguments import BackboneOptions
from .task import OnBatch


@dataclass(frozen=True, kw_only=True)
class LabelledPatchOptions:
    """What the tasks on labelled patches are told.

    Attributes:
        layout: How the images lie; auto tells it from the files.
        num_folds: Folds where the data are not split; retrieval queries the first.
        ddof: Delta degrees of freedom of deviations over folds.
        seed: Seed of folds, bootstrap and random weights.
        embedding: How patches are embedded.
    """

    layout: Layout | Literal["auto"] = "auto"
    num_folds: Annotated[int, arg(metavar="N")] = 5
    ddof: Literal[0, 1] = 0
    seed: int = 0
    embedding: Annotated[EmbeddingOptions, arg(name="")] = field(default_factory=EmbeddingOptions)

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class LabelledPatchCommand:
    """What the commands of the tasks on labelled patches share.

    Attributes:
        root: Folder of classes, table (path, label[, split][, patient]), or MHIST or UniToPatho as distributed.
        models: Which models embed.
    """

    root: Annotated[Positional[Path], arg(metavar="ROOT")]
    models: Annotated[BackboneOptions, arg(name="")]


def embed_images(
    root: str | Path, backbones: Sequence[Backbone], options: LabelledPatchOptions, on_batch: OnBatch
) -> tuple[LabelledImages, list[ModelRecord], dict[str, NDArray[np.float32]]]:
    """Opens the images and embeds them.

    Returns:
        The images, the models, and label → (N, D); no embeddings on ranks other than the first.

    Raises:
        DataError: The images cannot be used.
        EvaluationError: There is no model.
    """
    if not backbones:
        raise EvaluationError("no model to evaluate; name one with --model")
    options.embedding.check()
    images = open_images(root, options.layout)
    # what cannot be split is refused before anything is embedded
    images.folds(options.num_folds, options.seed)
    records, embeddings = embed_models(
        {"images": images.source},
        backbones,
        options.embedding,
        digests={"images": images.digest()},
        on_batch=on_batch,
    )
    return images, records, {label: by_source["images"] for label, by_source in embeddings.items()}


def image_files(root: str | Path, images: LabelledImages) -> dict[str, str]:
    """Hashes what was read: file → SHA-256, the images together as one."""
    return {f"{len(images.source)} images": images.digest(), **hash_files(Path(root), images.tables)}


def dataset_name(root: str | Path) -> str:
    """Names the data by their folder or table."""
    path = Path(root).resolve()
    return path.stem if path.is_file() else path.name


def split_notes(images: LabelledImages) -> tuple[str, ...]:
    """Says what a reader must know of the split."""
    if images.parts[0]:
        return ()
    if images.patients[0]:
        return ("The data are not split: folds are random over patients.",)
    return (
        "The data are not split and name no patients: images of one patient may lie in train and test parts alike, so "
        "the scores may be optimistic.",
    )
