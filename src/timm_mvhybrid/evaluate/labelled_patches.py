"""What the tasks on labelled patches share: their data, embedded by every model, what a result says of them, and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, arg

from ..cohorts.labelled_images import LabelledImages, Layout, open_images
from ..embed.backbone import Backbone
from ..embed.baselines import POSITION
from ..embed.embedding_cache import EmbeddingOptions, embed_models, unique_labels
from ..probes.splits import Fold
from ..report import Result, ScoreSheet
from ..report.bars import Bar, grouped_bars
from ..report.drawing import Box, Drawing, chart_style
from ..report.series_looks import bar
from ..runtime.digest import hash_files
from ..runtime.errors import EvaluationError, check_seed
from ..runtime.provenance import ModelRecord
from .arguments import BackboneOptions
from .task import OnBatch


@chart_style()
def confusion_matrix(model: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Draws a confusion matrix."""
    num = len(classes)
    cell = 58 if num <= 6 else 40
    drawing = Drawing(f"Confusion matrix of {model}")
    axes = drawing.panel(0, 0, num * cell, num * cell)
    axes.set(xlim=(0, num), ylim=(num, 0))
    centres = [place + 0.5 for place in range(num)]
    axes.xaxis.tick_top()
    drawing.ticks(axes.xaxis, centres, classes, "name", rotation=40, ha="left")
    drawing.ticks(axes.yaxis, centres, classes, "name")
    corner = axes.annotate(
        "predicted ↗ true ↓", (0, 1), (-6, 6), "axes fraction", "offset pixels", ha="right"
    )
    drawing.text(corner, "tick")
    edge, below = 1 / cell, 7 / cell
    boxes = []
    for i, true in enumerate(classes):
        total = sum(counts[i])
        for j, predicted in enumerate(classes):
            fraction = counts[i][j] / total if total else 0.0
            boxes.append(
                Box(
                    left=j + edge,
                    right=j + 1 - edge,
                    bottom=i + 1 - edge,
                    top=i + edge,
                    note=f"{true} taken for {predicted}: {counts[i][j]} of {total}",
                    opacity=fraction,
                )
            )
            ink = "on-fill" if fraction > 0.55 else "ink"
            for y, text, size in (
                (i + 0.5 - below, f"{100 * fraction:.0f} %", "name"),
                (i + 0.5 + below, str(counts[i][j]), "small"),
            ):
                written = axes.text(j + 0.5, y, text, ha="center", va="center_baseline")
                # lies within its cell, so that the picture's size need not be found from it
                written.set_in_layout(False)
                drawing.text(written, f"{ink} {size}")
    drawing.boxes(axes, [replace(box, opacity=1) for box in boxes], "cell")
    drawing.boxes(axes, boxes, bar(0))
    return drawing.svg()


@chart_style()
def precision_bars(metric: str, precision: Mapping[str, Mapping[str, float]]) -> str:
    """Draws the precision of every class, models side by side.

    Args:
        metric: Such as ``precision@1``.
        precision: Model → class → precision.
    """
    series = {
        model: {
            name: Bar(value=value, note=f"{name}, {model}: {metric} {value:.3f}")
            for name, value in found.items()
        }
        for model, found in precision.items()
    }
    return grouped_bars(
        f"{metric.replace('@', ' at ').capitalize()} of every class",
        list(dict.fromkeys(name for bars in series.values() for name in bars)),
        series,
        colours={model: index for index, model in enumerate(series)},
        limits=(0, 1),
        bar_px=14,
        gap_px=26,
        classes="name",
        rotation=35,
        ha="right",
    )


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


def count_images(root: str | Path, layout: Layout | Literal["auto"]) -> int:
    """Counts labelled images.

    Raises:
        DataError: They cannot be used.
    """
    return len(open_images(root, layout).source)


def embed_images(
    root: str | Path, backbones: Sequence[Backbone], options: LabelledPatchOptions, on_batch: OnBatch
) -> EmbeddedImages:
    """Opens the images and embeds them.

    Raises:
        DataError: The images cannot be used.
        EvaluationError: There is no model, or the images cannot be split into as many folds.
    """
    if any(backbone.name == POSITION for backbone in unique_labels(backbones).values()):
        raise EvaluationError(
            f"{POSITION} is made of coordinates, and only `evaluate expression` takes it; leave it out"
        )
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
