"""What the tasks on slides share: bags of embeddings by one model after the other, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, arg

from ..cohorts.bags import SlideTable, bag_folder, read_bags, weights_of_bags
from ..runtime.digest import file_sha256
from ..runtime.errors import EvaluationError, check_seed
from ..runtime.provenance import ModelRecord
from .task import Options, Task

Bags = list[NDArray[np.float32]]
PROTOCOL = "patient"
"""Folds of all tasks on slides: no patient is in the train and the test part of a fold."""


@dataclass(frozen=True, kw_only=True)
class SlideOptions:
    """Options of the tasks on slides.

    Attributes:
        num_folds: Folds over patients.
        ddof: Delta degrees of freedom of deviations over folds.
        seed: Seed of folds, training, prototypes and bootstrap.
    """

    num_folds: Annotated[int, arg(metavar="N")] = 5
    ddof: Literal[0, 1] = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class BagOptions:
    """Which embeddings.

    Attributes:
        bags: Folders of <slide_id>.h5 with features (CLAM's feat_dir, TRIDENT) or embeddings (timm-mvhybrid embed), one
            for each model.
    """

    bags: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")]


class SlideTask(Task[Options]):
    """A task on bags of embeddings, with folds over patients."""

    setting = "Folds"
    protocols = {PROTOCOL: "by patient"}  # noqa: RUF012 - a constant of the class

    def weights(self, options: Any) -> list[str]:
        """Reads it off the embeddings."""
        return [found for folder in options.bags if (found := weights_of_bags(folder)) is not None]


def read_models(
    folders: Sequence[str | Path], table: SlideTable
) -> Iterator[tuple[ModelRecord, Bags, dict[str, str]]]:
    """Reads the embeddings of one model after the other.

    Yields:
        The model, its bags, (N, D) of each slide, and the files read → SHA-256.

    Raises:
        DataError: A file is missing or holds no embeddings.
        EvaluationError: There is no folder, or two have the same name.
    """
    if not folders:
        raise EvaluationError("no embeddings to evaluate; name a folder of h5 files")
    labels = set()
    for folder in folders:
        bags, model = read_bags(folder, table.slides)
        if model.label in labels:
            raise EvaluationError(
                f"two folders are named '{model.label}'; rename one, because names label the models"
            )
        labels.add(model.label)
        files = {f"{model.label}/{slide}.h5": bag_folder(folder) / f"{slide}.h5" for slide in table.slides}
        yield model, bags, {name: file_sha256(file) for name, file in files.items()}


def by_model(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups a result's slides or patients by the model that scored them."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found
