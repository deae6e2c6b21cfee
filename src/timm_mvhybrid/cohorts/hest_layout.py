"""HEST's benchmark layout ↔ samples with counts in the order of their patches.

``<task>/{patches/<id>.h5, adata/<id>.h5ad, splits/{train,test}_<i>.csv, var_50genes.json}``
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import DataError, PatchH5Source
from .counts import read_counts
from .csv_tables import SPLIT_COLUMNS, read_csv


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
            _read_split(path, path / "splits" / f"{part}_{number}.csv", files) for part in ("train", "test")
        )
        both = sorted(set(train) & set(test))
        if both:
            raise DataError(
                f"{path / 'splits'}: sample '{both[0]}' is in both train_{number}.csv and test_{number}.csv"
            )
        splits.append(HestSplit(name=str(number), train=tuple(train), test=tuple(test)))
    return HestTask(path=path, files=files, splits=tuple(splits))


def task_panel(task: HestTask) -> Path:
    """Finds the list of genes that a task brings along.

    Raises:
        DataError: If it brings none, or several.
    """
    found = sorted(task.path.glob("var_*genes.json"))
    if len(found) != 1:
        raise DataError(
            f"{task.path}: has {len(found)} files var_<k>genes.json; name one as `panel`, or give `panel='hvg'`"
        )
    return found[0]


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


def _read_split(path: Path, table: Path, files: dict[str, tuple[Path, Path]]) -> list[str]:
    samples = []
    for row in read_csv(table, SPLIT_COLUMNS):
        sample = row["sample_id"]
        named = tuple(_named_file(path, table, sample, row[column]) for column in SPLIT_COLUMNS[1:])
        known = files.get(sample)
        if known is None:
            _check_new(table, sample, named, files)
            files[sample] = (named[0], named[1])
        else:
            for ours, theirs in zip(known, named, strict=True):
                if not ours.samefile(theirs):
                    raise DataError(
                        f"{table}: sample '{sample}' has the file {theirs}, and {ours} in the rest of the task; name one "
                        "of them everywhere"
                    )
        samples.append(sample)
    if not samples:
        raise DataError(f"{table}: names no sample")
    return samples


def _named_file(path: Path, table: Path, sample: str, name: str) -> Path:
    """Finds the file that a split names: relative to the task, absolute, or with Windows separators."""
    spellings = [name] if "\\" not in name else [name, name.replace("\\", "/")]
    trouble = "does not exist"
    for spelling in spellings:
        file = path / spelling
        try:
            if stat.S_ISREG(file.stat().st_mode):
                return file
            trouble = "is not a file"
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:  # another machine's path may be where this user has no access
            trouble = f"cannot be reached ({getattr(error, 'strerror', None) or error})"
    raise DataError(
        f"{table}: names {name}, which {trouble}, for sample '{sample}'; give paths relative to {path}, such as "
        f"patches/{sample}.h5"
    )


def _check_new(
    table: Path, sample: str, named: tuple[Path, ...], files: dict[str, tuple[Path, Path]]
) -> None:
    """Checks that a sample known from a split alone is not one of the folder's under another name."""
    for other, known in files.items():
        if any(ours.samefile(theirs) for ours, theirs in zip(known, named, strict=True)):
            raise DataError(
                f"{table}: sample '{sample}' has a file of sample '{other}', which would be counted twice; call both by "
                "one name"
            )


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
