"""What the tasks on slides share: bags of embeddings by one model after the other, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, arg

from ..cohorts.bags import SlideTable, bag_folder, read_bags
from ..runtime.digest import file_sha256
from ..runtime.errors import EvaluationError, check_seed
from ..runtime.provenance import ModelRecord

Bags = list[NDArray[np.float32]]
PROTOCOL = "patient"
"""Folds of all tasks on slides: no patient is in the train and the test part of a fold."""


@dataclass(frozen=True, kw_only=True)
class SlideOptions:
    """What the tasks on slides are told.

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


class BagReader:
    """Reads the embeddings of every model in turn, and keeps what is known of the models and files.

    Args:
        folders: Embeddings by one model each.
        table: The slides.

    Raises:
        EvaluationError: There is no folder.
    """

    def __init__(self, folders: Sequence[str | Path], table: SlideTable) -> None:
        if not folders:
            raise EvaluationError("no embeddings to evaluate; name a folder of h5 files")
        self.folders, self.table = folders, table
        self.records: list[ModelRecord] = []
        self._digests: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, Bags]]:
        """Yields each model's label and its bags, (N, D) of each slide.

        Raises:
            DataError: A file is missing or holds no embeddings.
            EvaluationError: Two folders have the same name.
        """
        for folder in self.folders:
            bags, record = read_bags(folder, self.table.slides)
            if any(other.label == record.label for other in self.records):
                raise EvaluationError(
                    f"two folders are named '{record.label}'; rename one, because names label the models"
                )
            for slide in self.table.slides:
                self._digests[f"{record.label}/{slide}.h5"] = file_sha256(bag_folder(folder) / f"{slide}.h5")
            self.records.append(record)
            yield record.label, bags

    @property
    def files(self) -> dict[str, str]:
        """File → SHA-256 of all that was read."""
        return {self.table.path.name: file_sha256(self.table.path), **self._digests}
