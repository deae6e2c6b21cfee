"""Images with classes, in the usual layouts: folder → paths, labels, splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..data import DataError, FolderSource, read_csv, source_digest
from ..probes.splits import Fold, patient_folds
from ..runtime.names import unique_positions
from .csv_tables import PATIENT_COLUMNS, patients

Layout = Literal["folders", "csv", "mhist", "unitopatho"]
_PARTS = ("train", "test")
_MHIST = "annotations.csv"
_MHIST_COLUMNS = ("Image Name", "Majority Vote Label", "Partition")


class ListedImages(FolderSource):
    """Images of a list, paths relative to a folder with forward slashes, instead of all below it.

    Raises:
        DataError: If one does not exist.
    """

    def __init__(self, path: Path, paths: Sequence[str]) -> None:
        self.path = path
        self.paths = list(paths)
        for name in self.paths:
            if not (path / name).is_file():
                raise DataError(f"{path / name}: no such image; correct the table or add it")


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """Images with their classes and splits.

    Attributes:
        layout: How the files are laid out.
        source: The images.
        labels: Class of each image, (N,).
        parts: ``train`` or ``test`` for each image; empty strings where the layout does not split.
        patients: Patient of each image; empty strings where unknown.
        tables: The files that name labels and splits.
    """

    layout: Layout
    source: ListedImages
    labels: NDArray[np.str_]
    parts: NDArray[np.str_]
    patients: NDArray[np.str_]
    tables: tuple[Path, ...]

    @property
    def classes(self) -> list[str]:
        """Class names, sorted."""
        return sorted(set(self.labels.tolist()))

    def digest(self) -> str:
        """Hashes the names and contents of the images, as SHA-256 in hex."""
        return source_digest(self.source)

    def folds(self, num_folds: int, seed: int) -> list[Fold]:
        """Takes the layout's split, or makes folds in which classes are spread evenly and patients stay together."""
        if self.parts[0]:
            return [Fold(np.flatnonzero(self.parts == "train"), np.flatnonzero(self.parts == "test"), "test")]
        owners = self.patients if self.patients[0] else np.arange(len(self.labels))
        return patient_folds(owners, num_folds, seed, labels=self.labels)


def open_images(root: str | Path, layout: Layout | Literal["auto"] = "auto") -> LabelledImages:
    """Reads labels and splits.

    - ``folders``: ``<class>/*.png``, or ``train/<class>/...`` and ``test/<class>/...``; Pillow's usual formats.
    - ``csv``: a table (the root is the file) with the columns path, label and, if known, split (train or test) and
      patient (or group: what must not be split); paths are relative to the table's folder.
    - ``mhist``: ``annotations.csv`` and ``images/``, as MHIST is distributed.
    - ``unitopatho``: ``train.csv``, ``test.csv`` with image_id and top_label_name, images at ``<top_label_name>/<image_id>``:
      the folder ``800`` or ``7000`` of UniToPatho as distributed.

    Args:
        root: The folder, or the table.
        layout: ``auto`` recognises it by the files.

    Raises:
        DataError: If files or columns are missing, a split lacks a part, or there are fewer than two classes.
    """
    root = Path(root)
    kind = _detect(root) if layout == "auto" else layout
    readers = {"folders": _folders, "csv": _table, "mhist": _mhist, "unitopatho": _unitopatho}
    if kind not in readers:
        raise DataError(f"`layout` is '{kind}'; choose from auto, {', '.join(get_args(Layout))}")
    folder = root.parent if kind == "csv" else root
    rows, tables = readers[kind](root)
    if not rows:
        raise DataError(f"{root}: names no image")
    paths = [row["path"] for row in rows]
    # './a.png' and 'a.png' are one image, which must not be in both train and test
    unique_positions(
        root, "image", [os.path.relpath(folder / path, folder) for path in paths], "give each image one line"
    )
    images = LabelledImages(
        layout=kind,
        source=ListedImages(folder, paths),
        labels=np.array([row["label"] for row in rows]),
        parts=np.array([row.get("split", "") for row in rows]),
        patients=np.array([row.get("patient", "") for row in rows]),
        tables=tuple(tables),
    )
    if len(images.classes) < 2:
        raise DataError(f"{root}: all images are of the class '{images.classes[0]}'; at least two are needed")
    _check_parts(root, images)
    return images


def _check_parts(root: Path, images: LabelledImages) -> None:
    found = set(images.parts.tolist())
    if found != {""} and found != set(_PARTS):
        wrong = ", ".join(repr(part) for part in sorted(found))
        raise DataError(
            f"{root}: the splits are {wrong}; there must be train and test for every image, or none"
        )
    owners = [set(images.patients[images.parts == part]) for part in _PARTS]
    both = owners[0] & owners[1] - {""}
    if both:
        raise DataError(f"{root}: patient '{min(both)}' has images in both train and test")


def _detect(root: Path) -> Layout:
    if root.is_file():
        return "csv"
    if not root.is_dir():
        raise DataError(f"{root}: no such folder or table")
    if (root / _MHIST).is_file() and (root / "images").is_dir():
        return "mhist"
    if all((root / f"{part}.csv").is_file() for part in _PARTS):
        return "unitopatho"
    return "folders"


_Rows = tuple[list[dict[str, str]], list[Path]]


def _folders(root: Path) -> _Rows:
    rows = []
    split = all((root / part).is_dir() for part in _PARTS)
    for path in FolderSource(root).paths:
        pieces = path.split("/")
        if len(pieces) < (3 if split else 2) or (split and pieces[0] not in _PARTS):
            where = "train/<class>/ or test/<class>/" if split else "a folder named after its class"
            raise DataError(f"{root / path}: must lie in {where}")
        part, label = pieces[:2] if split else ("", pieces[0])
        rows.append({"path": path, "label": label, "split": part})
    return rows, []


def _table(root: Path) -> _Rows:
    rows = read_csv(root, ("path", "label"))
    owners = patients(root, rows, "image", "path", PATIENT_COLUMNS)
    return [{**row, "patient": owner} for row, owner in zip(rows, owners, strict=True)], [root]


def _mhist(root: Path) -> _Rows:
    file = root / _MHIST
    rows = [
        {
            "path": f"images/{row['Image Name']}",
            "label": row["Majority Vote Label"],
            "split": row["Partition"].lower(),
        }
        for row in read_csv(file, _MHIST_COLUMNS)
    ]
    return rows, [file]


def _unitopatho(root: Path) -> _Rows:
    tables = {part: root / f"{part}.csv" for part in _PARTS}
    rows = [
        {"path": f"{row['top_label_name']}/{row['image_id']}", "label": row["top_label_name"], "split": part}
        for part, file in tables.items()
        for row in read_csv(file, ("image_id", "top_label_name"))
    ]
    return rows, list(tables.values())
