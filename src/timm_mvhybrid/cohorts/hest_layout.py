"""HEST's benchmark layout ↔ samples with counts in the order of their patches.

``<task>/{patches/<id>.h5, adata/<id>.h5ad, splits/{train,test}_<i>.csv, var_50genes.json}``

A CSV of samples is read to the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import DataError, PatchH5Source, read_csv
from ..runtime.names import unique_positions
from .counts import read_counts
from .csv_tables import PATIENT_COLUMNS, patients, read_split


def read_samples(
    file: str | Path, counts_layer: str | None = None, *, option: str = "counts_layer"
) -> tuple[list[HestSample], dict[str, str]]:
    """Reads samples that a table lists.

    Args:
        file: CSV with the columns patches (patch h5 with barcodes), expression (h5ad, or CSV with a barcode and a count
            for each gene in a row) and, if known, patient (or group: what must not be split). Relative paths start at
            the table's folder.
        counts_layer: As in ``read_spots``.
        option: As in ``read_spots``.

    Returns:
        The samples, called by their path in the table, without patches that have no counts; and sample → patient, the
        sample itself where patients are unknown.

    Raises:
        DataError: If the table lacks a column or names a sample twice, or a sample cannot be read, see ``read_spots``.
    """
    file = Path(file)
    rows = read_csv(file, ("patches", "expression"))
    if not rows:
        raise DataError(f"{file}: names no sample")
    names = [row["patches"] for row in rows]
    unique_positions(file, "sample", names, "give each sample one line")
    owners = patients(file, rows, "sample", "patches", PATIENT_COLUMNS)
    samples = [
        read_spots(
            row["patches"],
            file.parent / row["patches"],
            file.parent / row["expression"],
            counts_layer,
            option=option,
            leave_out_unmeasured=True,
        )
        for row in rows
    ]
    return samples, {name: owner or name for name, owner in zip(names, owners, strict=True)}


@dataclass(frozen=True, eq=False, kw_only=True)
class HestSample:
    """One slide: patches and counts of the same spots.

    Attributes:
        sample_id: Its name.
        patches: The patch h5.
        expression: The h5ad.
        barcodes: One for each spot, in the order of the patch h5.
        rows: The patch of each spot, by its number in the patch h5.
        genes: Gene symbols.
        counts: Raw counts, (spots, genes), SciPy CSR, float64.
        spatial: Centres in px of the slide, (spots, 2) as x, y; from the patch h5 where the h5ad has none.
        generated: Whether the file says that it was generated.
    """

    sample_id: str
    patches: Path
    expression: Path
    barcodes: list[str]
    rows: NDArray[np.int64]
    genes: list[str]
    counts: Any
    spatial: NDArray[np.float64]
    generated: bool


@dataclass(frozen=True, kw_only=True)
class HestSplit:
    """One of the task's own splits.

    Attributes:
        name: Its number.
        train: Sample names.
        test: Sample names.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HestTask:
    """A task's files, checked for completeness and not yet read.

    Attributes:
        path: The task's folder.
        files: Sample → patch h5 and h5ad.
        splits: The task's own splits, by number; empty if it has none.
    """

    path: Path
    files: dict[str, tuple[Path, Path]]
    splits: tuple[HestSplit, ...]

    @property
    def samples(self) -> list[str]:
        """Sample names, sorted."""
        return sorted(self.files)

    @property
    def panel(self) -> Path:
        """The list of genes that the task brings along.

        Raises:
            DataError: If it brings none, or several.
        """
        found = sorted(self.path.glob("var_*genes.json"))
        if len(found) != 1:
            raise DataError(
                f"{self.path}: has {len(found)} files var_<k>genes.json; name one as `panel`, or give `panel='hvg'`"
            )
        return found[0]


def open_task(root: str | Path, task: str | None = None) -> HestTask:
    """Finds the samples and splits of a task.

    Raises:
        DataError: If there is no task, or several and none is named; if a sample lacks one of its files; if a split is
            incomplete, names an unknown file, or has a sample in both parts.
    """
    path = _find_task(Path(root), task)
    found = {kind: {file.stem: file for file in sorted(path.glob(pattern))} for kind, pattern in (
        ("patches", "patches/*.h5"), ("adata", "adata/*.h5ad")
    )}  # fmt: skip
    files = {}
    for sample in sorted({*found["patches"], *found["adata"]}):
        for kind, suffix in (("patches", ".h5"), ("adata", ".h5ad")):
            if sample not in found[kind]:
                raise DataError(
                    f"{path / kind / (sample + suffix)}: missing, and the sample's other file exists; add it, or "
                    "remove the other"
                )
        files[sample] = (found["patches"][sample], found["adata"][sample])
    if not files:
        raise DataError(f"{path}: neither patches/*.h5 nor adata/*.h5ad; is it a task in the HEST layout?")
    splits = []
    numbers = sorted(
        {int(match[1]) for file in path.glob("splits/*.csv") if (match := re.fullmatch(r"(?:train|test)_(\d+)\.csv", file.name))}
    )  # fmt: skip
    for number in numbers:
        train, test = (
            read_split(path, path / "splits" / f"{part}_{number}.csv", files) for part in ("train", "test")
        )
        both = sorted(set(train) & set(test))
        if both:
            raise DataError(
                f"{path / 'splits'}: sample '{both[0]}' is in both train_{number}.csv and test_{number}.csv"
            )
        splits.append(HestSplit(name=str(number), train=tuple(train), test=tuple(test)))
    return HestTask(path=path, files=files, splits=tuple(splits))


def _find_task(root: Path, task: str | None) -> Path:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    is_task = (root / "patches").is_dir() or (root / "adata").is_dir()
    tasks = sorted(
        entry.name for entry in root.iterdir() if (entry / "patches").is_dir() and (entry / "adata").is_dir()
    )
    if task is not None:
        if task not in tasks:
            raise DataError(f"{root}: has no task '{task}'; it has {', '.join(tasks) or 'none'}")
        return root / task
    if is_task:
        return root
    if len(tasks) == 1:
        return root / tasks[0]
    if tasks:
        raise DataError(f"{root}: has the tasks {', '.join(tasks)}; choose one with `task`")
    raise DataError(f"{root}: no task in the HEST layout (a folder with patches/ and adata/)")


def read_sample(task: HestTask, sample_id: str, counts_layer: str | None = None) -> HestSample:
    """Reads the counts of a sample in the order of its patches, see ``read_spots``."""
    return read_spots(sample_id, *task.files[sample_id], counts_layer)


def read_spots(
    sample_id: str,
    patches: Path,
    expression: Path,
    counts_layer: str | None = None,
    *,
    option: str = "counts_layer",
    leave_out_unmeasured: bool = False,
) -> HestSample:
    """Reads the counts of a patch h5's spots, in the order of its patches.

    Args:
        sample_id: The sample's name.
        patches: Patch h5 with barcodes.
        expression: h5ad, or a CSV, see ``read_counts``.
        counts_layer: The layer of the h5ad that holds the counts, or ``raw``; None takes X.
        option: The parameter by which the caller's user sets ``counts_layer``, for messages.
        leave_out_unmeasured: Whether patches without counts are left out instead of being refused.

    Raises:
        DataError: As ``read_counts``, or if a patch, or each of them, has no counts.
    """
    source = PatchH5Source(patches)
    if source.barcodes is None:
        raise DataError(
            f"{patches}: no dataset 'barcode', so its patches cannot be matched with {expression.name}"
        )
    measured = read_counts(expression, counts_layer, option=option)
    row_of = {barcode: row for row, barcode in enumerate(measured.barcodes)}
    kept = [index for index, barcode in enumerate(source.barcodes) if barcode in row_of]
    if not kept:
        raise DataError(
            f"{patches} and {expression} share no barcode ('{source.barcodes[0]}' …, '{measured.barcodes[0]}' …); give "
            "the counts of these spots"
        )
    if not leave_out_unmeasured and len(kept) < len(source.barcodes):
        missing = next(barcode for barcode in source.barcodes if barcode not in row_of)
        raise DataError(
            f"{expression}: barcode '{missing}' of {patches.name} is missing; remove its patch, or add its counts"
        )
    barcodes = [source.barcodes[index] for index in kept]
    counts = measured.rows([row_of[barcode] for barcode in barcodes])
    spatial = counts.spatial
    if spatial is None:
        corners = source.coords
        spatial = np.zeros((len(kept), 2)) if corners is None else corners[kept].astype(np.float64)
    return HestSample(
        sample_id=sample_id,
        patches=patches,
        expression=expression,
        barcodes=barcodes,
        rows=np.array(kept),
        genes=list(counts.genes),
        counts=counts.values,
        spatial=spatial,
        generated=counts.generated,
    )
