"""Folder of h5 files, one a slide + table → bags of patch embeddings with patients and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data import DataError, read_csv
from ..embed.embedding_store import read_embeddings
from ..runtime.names import unique_positions
from ..runtime.provenance import ModelRecord

_PATIENT = ("patient", "case_id")
_CLAM_FOLDER = "h5_files"


@dataclass(frozen=True, eq=False, kw_only=True)
class SlideTable:
    """Slides, their patients and labels.

    Attributes:
        path: The table.
        slides: Slide names, in the table's order.
        patients: Patient of each; the slide itself where the table has no patients.
        columns: The other columns wanted, each with one value for each slide.
    """

    path: Path
    slides: tuple[str, ...]
    patients: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]


def read_slides(file: str | Path, columns: Sequence[str]) -> SlideTable:
    """Reads a table of slides; raises DataError where a column or a value is missing or a slide occurs twice."""
    file = Path(file)
    rows = read_csv(file, ("slide_id", *columns))
    if not rows:
        raise DataError(f"{file}: names no slide")
    slides = [row["slide_id"] for row in rows]
    unique_positions(file, "slide", slides, "give each slide one line")
    patient = next((name for name in _PATIENT if name in rows[0]), None)
    for row in rows:
        if patient is not None and not row[patient]:
            raise DataError(f"{file}: slide '{row['slide_id']}' has no {patient}")
    return SlideTable(
        path=file,
        slides=tuple(slides),
        patients=tuple(row["slide_id"] if patient is None else row[patient] for row in rows),
        columns={name: tuple(row[name] for row in rows) for name in columns},
    )


def bag_folder(folder: str | Path) -> Path:
    """Finds the folder of the h5 files: the one given, or ``h5_files`` in CLAM's ``feat_dir``, beside its ``pt_files``."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of embeddings")
    inner = folder / _CLAM_FOLDER
    return inner if inner.is_dir() and not any(folder.glob("*.h5")) else folder


def weights_of_bags(folder: str | Path) -> str | None:
    """Looks up which weights embedded the slides of a folder: the SHA-256 in its first file, None without files."""
    first = next(iter(sorted(bag_folder(folder).glob("*.h5"))), None)
    return None if first is None else read_embeddings(first).weights_sha256


def read_bags(folder: str | Path, slides: Sequence[str]) -> tuple[list[NDArray[np.float32]], ModelRecord]:
    """Reads the embeddings of slides from ``<slide_id>.h5`` in a folder, see ``bag_folder`` and ``read_embeddings``.

    Returns:
        Bags, (N, D) float32 each, and the model that the files name.

    Raises:
        DataError: If a file is missing or holds no embeddings, values are not finite, or widths or models differ.
    """
    folder = bag_folder(folder).resolve()
    bags: list[NDArray[np.float32]] = []
    models: dict[tuple[str, str, str], Path] = {}
    for slide in slides:
        file = folder / f"{slide}.h5"
        if not file.is_file():
            raise DataError(f"{file}: missing; embed the slide, or remove it from the table")
        stored = read_embeddings(file)
        bag = stored.embeddings
        if bags and bag.shape[1] != bags[0].shape[1]:
            raise DataError(
                f"{file}: embeddings of width {bag.shape[1]}, the first slide's have {bags[0].shape[1]}"
            )
        models.setdefault((stored.model, stored.weights, stored.weights_sha256), file)
        if len(models) > 1:
            raise DataError(
                f"{file}: was embedded with other weights than {next(iter(models.values())).name}"
            )
        bags.append(bag)
    name, weights, digest = next(iter(models))
    record = ModelRecord(
        # all of CLAM's are called alike, so the folder around it tells models apart
        label=(folder.parent if folder.name == _CLAM_FOLDER else folder).name,
        name=name,
        weights=weights,
        weights_sha256=digest,
        embedding_dim=bags[0].shape[1],
        num_patches=sum(map(len, bags)),
        num_cached=sum(map(len, bags)),
    )
    return bags, record
