"""Folder per class | CSV of labels | CSV of samples with expression → patches and what is known of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..cohorts.counts import Counts
from ..data import DataError, FolderSource, PatchSource, SlideChoiceError, open_source
from ..data.folder import read_image
from ..runtime.errors import PretrainError
from .expression_table import most_variable_genes, read_expression


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """Images of known classes.

    Args:
        path: Where the set is described.
        files: The images.
        classes: Names of the classes, sorted.
        labels: (N,) class of each image.
        groups: (N,) such as the patient; None where unknown.
        reference: (N,) bool, whether others may be classified by this image; None if all are.
    """

    path: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    reference: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.files)

    def read(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Reads one image as RGB.

        Args:
            index: From 0 to the number of images.

        Returns:
            The image.
        """
        return read_image(self.files[index])


@dataclass(frozen=True, kw_only=True)
class ExpressionSet:
    """Patches of spots with measured gene expression.

    Args:
        path: Where the set is described.
        sources: Patches of each sample.
        spots: (N, 2) sample, and patch in it, of each spot.
        genes: Names of the genes that are predicted.
        expression: (N, genes), log(1 + counts scaled to the sample's median total).
        groups: (N,) what is held out together.
        coords: (N, 2) top-left corners in level-0 px; None if a sample has none.
    """

    path: Path
    sources: tuple[PatchSource, ...]
    spots: NDArray[np.int64]
    genes: tuple[str, ...]
    expression: NDArray[np.float32]
    groups: NDArray[np.int64]
    coords: NDArray[np.int64] | None

    def __len__(self) -> int:
        """Returns the number of spots."""
        return len(self.spots)

    def read(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Reads the patch of one spot as RGB.

        Args:
            index: From 0 to the number of spots.

        Returns:
            The patch.
        """
        sample, patch = self.spots[index]
        return self.sources[sample][int(patch)]


def open_labelled_set(
    path: str | Path, *, num_genes: int = 50, counts_layer: str | None = None
) -> ClassSet | ExpressionSet:
    """Opens a labelled set; its kind is told from its content.

    Args:
        path: A folder with a folder of images for each class; a CSV with the columns `path`, `label` and, if wanted,
            `group` (images of one are not classified by each other) and `split` (images of `test` are classified by
            those of `train`); or a CSV with the columns `patches` (patch h5 with barcodes), `expression` (h5ad, or CSV
            with a barcode and a count for each gene in a row) and, if wanted, `group` (the patient). Relative paths
            start at the CSV.
        num_genes: Genes to predict, those of the largest variance over all spots.
        counts_layer: The layer of each h5ad that holds the counts, or `raw`; None takes X.

    Returns:
        The set.

    Raises:
        PretrainError: It is none of these, or incomplete; the message names file, line and remedy.
    """
    path = Path(path)
    if path.is_dir():
        return _class_folders(path)
    rows = _read_csv(path)
    columns = set(rows[0])
    if {"path", "label"} <= columns:
        return _class_table(path, rows)
    if {"patches", "expression"} <= columns:
        return _expression_table(path, rows, num_genes, counts_layer)
    raise PretrainError(
        f"{path}: has the columns {', '.join(rows[0])}; it must have 'path' and 'label', or 'patches' and 'expression'"
    )


def _class_folders(path: Path) -> ClassSet:
    try:
        source = FolderSource(path)
    except DataError as error:
        raise PretrainError(str(error)) from error
    names = source.paths
    loose = [name for name in names if "/" not in name]
    if loose:
        raise PretrainError(f"{path / loose[0]}: lies outside the folders of classes; move it into one")
    return _class_set(path, [path / name for name in names], [name.split("/")[0] for name in names])


def _class_table(path: Path, rows: Sequence[dict[str, str]]) -> ClassSet:
    files = [path.parent / row["path"] for row in rows]
    for number, file in enumerate(files, start=2):
        if not file.is_file():
            raise PretrainError(
                f"{path}: line {number}: {file} is no file; paths start at the folder of the CSV"
            )
    groups = _numbers([row["group"] for row in rows]) if "group" in rows[0] else None
    reference = None
    if "split" in rows[0]:
        splits = [row["split"] for row in rows]
        for number, split in enumerate(splits, start=2):
            if split not in ("train", "test"):
                raise PretrainError(f"{path}: line {number}: split is '{split}'; it must be train or test")
        reference = np.array([split == "train" for split in splits])
        if reference.all() or not reference.any():
            raise PretrainError(
                f"{path}: every split is '{splits[0]}'; give train and test, or leave the column out"
            )
    if groups is not None and len(np.unique(groups)) < 2:
        raise PretrainError(f"{path}: there is one group only; give several, or leave the column out")
    return _class_set(path, files, [row["label"] for row in rows], groups, reference)


def _class_set(
    path: Path,
    files: Sequence[Path],
    labels: Sequence[str],
    groups: NDArray[np.int64] | None = None,
    reference: NDArray[np.bool_] | None = None,
) -> ClassSet:
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise PretrainError(f"{path}: holds the class '{classes[0]}' only; a probe needs two or more")
    return ClassSet(
        path=path,
        files=tuple(files),
        classes=classes,
        labels=_numbers(labels),
        groups=groups,
        reference=reference,
    )


def _expression_table(
    path: Path, rows: Sequence[dict[str, str]], num_genes: int, counts_layer: str | None
) -> ExpressionSet:
    sources: list[PatchSource] = []
    tables: list[Counts] = []
    spots: list[tuple[int, int]] = []
    groups: list[int] = []
    names = _numbers([row.get("group") or str(number) for number, row in enumerate(rows)])
    for number, (row, group) in enumerate(zip(rows, names, strict=True)):
        try:
            source = open_source(path.parent / row["patches"])
        except SlideChoiceError as error:
            cause = f"{error.cause}; give a patch h5, whose barcodes name the spots"
            raise PretrainError(f"{path}: line {number + 2}: {cause}") from error
        except DataError as error:
            raise PretrainError(f"{path}: line {number + 2}: {error}") from error
        if source.barcodes is None:
            raise PretrainError(
                f"{path}: line {number + 2}: {source.path} has no barcodes, which name the spots"
            )
        table = read_expression(path.parent / row["expression"], counts_layer)
        position = {barcode: index for index, barcode in enumerate(table.barcodes)}
        shared = [(index, position[name]) for index, name in enumerate(source.barcodes) if name in position]
        if not shared:
            raise PretrainError(
                f"{path}: line {number + 2}: {source.path} and {table.path} share no barcode "
                f"('{source.barcodes[0]}' …, '{table.barcodes[0]}' …)"
            )
        sources.append(source)
        tables.append(table.rows([spot for _, spot in shared]))
        spots.extend((number, patch) for patch, _ in shared)
        groups.extend([group] * len(shared))
    genes, expression = most_variable_genes(tables, num_genes)
    indices = np.array(spots, dtype=np.int64)
    known = [source.coords for source in sources if source.coords is not None]
    coords = None
    if len(known) == len(sources):
        coords = np.stack([known[sample][patch] for sample, patch in spots])
    return ExpressionSet(
        path=path,
        sources=tuple(sources),
        spots=indices,
        genes=genes,
        expression=expression,
        groups=np.array(groups, dtype=np.int64),
        coords=coords,
    )


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows: list[dict[Any, Any]] = list(csv.DictReader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PretrainError(
            f"{path}: cannot be read as a CSV ({error}); give a CSV or a folder with a folder for each class"
        ) from error
    if not rows:
        raise PretrainError(f"{path}: holds no row below its header")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise PretrainError(f"{path}: line {number} has another number of columns than the header")
    return rows


def _numbers(names: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
