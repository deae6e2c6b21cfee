"""What the tasks on labelled patches share: their data, embedded by every model, and what a result says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, arg

from ..cohorts.labelled_images import LabelledImages, Layout, open_images
from ..embed.backbone import Backbone
from ..embed.embedding_cache import EmbeddingOptions, embed_models, unique_labels
from ..probes.splits import Fold
from ..report import Result, ScoreSheet
from ..runtime.digest import hash_files
from ..runtime.errors import check_seed
from ..runtime.provenance import ModelRecord
from .arguments import BackboneOptions
from .task import OnBatch


@dataclass(frozen=True, kw_only=True)
class LabelledPatchOptions:
    """Options of the tasks on labelled patches.

    Attributes:
        layout: How the images lie; auto recognises it by the files.
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
    """Options of the commands of the tasks on labelled patches.

    Attributes:
        root: Folder of classes, table (path, label[, split][, patient]), or MHIST or UniToPatho as distributed.
        models: Which models embed.
    """

    root: Annotated[Positional[Path], arg(metavar="ROOT")]
    models: Annotated[BackboneOptions, arg(name="")]


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddedImages:
    """Labelled images and what every model makes of them.

    Attributes:
        root: Their folder or table.
        images: The images.
        folds: Train and test parts.
        digest: SHA-256 of all images together.
        models: The models.
        features: Model's label → (N, D); empty on ranks other than the first.
    """

    root: Path
    images: LabelledImages
    folds: list[Fold]
    digest: str
    models: list[ModelRecord]
    features: dict[str, NDArray[np.float32]]

    def result(
        self,
        task: str,
        options: LabelledPatchOptions,
        sheet: ScoreSheet,
        arrays: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> Result:
        """Makes a task's result of its scores, arrays and settings; ``layout`` is one of the settings."""
        root = self.root.resolve()
        notes = []
        if not self.images.parts[0]:
            notes.append(
                "The data are not split: folds are random over patients."
                if self.images.patients[0]
                else "The data are not split and name no patients: images of one patient may lie in train and test parts "
                "alike, so the scores may be optimistic."
            )
        return sheet.result(
            task=task,
            dataset=root.stem if root.is_file() else root.name,
            models=self.models,
            settings={**(settings or {}), "layout": self.images.layout},
            arrays=arrays,
            options=options,
            data={
                f"{len(self.images.source)} images": self.digest,
                **hash_files(self.root, self.images.tables),
            },
            notes=notes,
        )


def embed_images(
    root: str | Path, backbones: Sequence[Backbone], options: LabelledPatchOptions, on_batch: OnBatch
) -> EmbeddedImages:
    """Opens the images and embeds them.

    Raises:
        DataError: The images cannot be used.
        EvaluationError: There is no model, or the images cannot be split into as many folds.
    """
    unique_labels(backbones)
    options.embedding.check()
    images = open_images(root, options.layout)
    folds = images.folds(options.num_folds, options.seed)
    digest = images.digest()
    models, embeddings = embed_models(
        {"images": images.source}, backbones, options.embedding, digests={"images": digest}, on_batch=on_batch
    )
    features = {label: by_source["images"] for label, by_source in embeddings.items()}
    return EmbeddedImages(
        root=Path(root), images=images, folds=folds, digest=digest, models=models, features=features
    )
