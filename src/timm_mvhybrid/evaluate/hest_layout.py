"""HEST's benchmark layout ↔ samples with counts in the order of their patches.

`<task>/{patches/<id>.h5, adata/<id>.h5ad, splits/{train,test}_<i>.csv, var_50genes.json}`
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import DataError, PatchH5Source
from .extras import require
from .tables import SPLIT_COLUMNS, read_csv, unique_positions

GENERATED_KEY = "generated"
"""Entry of `uns` that marks data which were generated, not measured."""


@dataclass(frozen=True, eq=False, kw_only=True)
class HestSample:
    """One slide: patches and counts of the same spots.

    Args:
        sample_id: Its name.
        patches: The patch h5.
        expression: The h5ad.
        barcodes: One for each spot, in the order of the patch h5.
        genes: Gene symbols.
        counts: Raw counts, (spots, genes), SciPy CSR.
        spatial: Centres in px of the slide, (spots, 2) as x, y; from the patch h5 where the h5ad has none.
        generated: Whether the file says that it was generated.
    """

    sample_id: str
    patches: Path
    expression: Path
    barcodes: list[str]
    genes: list[str]
    counts: Any
    spatial: NDArray[np.float64]
    generated: bool


@dataclass(frozen=True, kw_only=True)
class HestSplit:
    """One of the task's own splits.

    Args:
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

    Args:
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

    Args:
        root: The task's folder, or the folder of several tasks.
        task: Name of one of several.

    Returns:
        The task.

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
                    f"{path / kind / (sample + suffix)}: missing, and the sample's other file is there; add it, or "
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
        raise DataError(f"{root}: has the tasks {', '.join(tasks)}; choose one with --task")
    raise DataError(f"{root}: no task in the HEST layout (a folder with patches/ and adata/)")


def _read_split(path: Path, file: Path, files: dict[str, tuple[Path, Path]]) -> list[str]:
    samples = []
    for row in read_csv(file, SPLIT_COLUMNS):
        patches, expression = path / row["patches_path"], path / row["expr_path"]
        for named in (patches, expression):
            if not named.is_file():
                raise DataError(f"{file}: names {named.relative_to(path)}, which does not exist")
        sample = row["sample_id"]
        if files.setdefault(sample, (patches, expression)) != (patches, expression):
            raise DataError(f"{file}: sample '{sample}' has other files than in the rest of the task")
        samples.append(sample)
    if not samples:
        raise DataError(f"{file}: names no sample")
    return samples


def read_sample(task: HestTask, sample_id: str) -> HestSample:
    """Reads the counts of a sample in the order of its patches.

    Args:
        task: The task.
        sample_id: The sample.

    Returns:
        The sample; spots without a patch are left out.

    Raises:
        DataError: If a barcode of the patches is missing in the h5ad or occurs twice, a gene occurs twice, counts are
            negative, not whole or not finite, or a file cannot be read.
        EvaluationError: If anndata is not installed.
    """
    patches, expression = task.files[sample_id]
    source = PatchH5Source(patches)
    if source.barcodes is None:
        raise DataError(
            f"{patches}: no dataset 'barcode', so its patches cannot be matched with {expression.name}"
        )
    data = _read_h5ad(expression)
    rows = unique_positions(expression, "barcode", list(map(str, data.obs_names)))
    genes = list(map(str, data.var_names))
    unique_positions(expression, "gene", genes)
    order = []
    for barcode in source.barcodes:
        if barcode not in rows:
            raise DataError(
                f"{expression}: barcode '{barcode}' of {patches.name} is missing; remove its patch, or add its counts"
            )
        order.append(rows[barcode])
    counts = require("scipy.sparse").csr_matrix(data.X)[order]
    wrong = ~(np.isfinite(counts.data) & (counts.data >= 0) & (counts.data == np.round(counts.data)))
    if wrong.any():
        first = int(wrong.argmax())
        row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
        raise DataError(
            f"{expression}: barcode '{source.barcodes[row]}', gene '{genes[counts.indices[first]]}' has the value "
            f"{counts.data[first]}, which is no count; X must hold raw counts"
        )
    centres = source.coords
    spatial = (
        np.asarray(data.obsm["spatial"], dtype=np.float64)[order, :2] if "spatial" in data.obsm else None
    )
    if spatial is None:
        spatial = np.zeros((len(order), 2)) if centres is None else centres.astype(np.float64)
    return HestSample(
        sample_id=sample_id,
        patches=patches,
        expression=expression,
        barcodes=source.barcodes,
        genes=genes,
        counts=counts,
        spatial=spatial,
        generated=bool(data.uns.get(GENERATED_KEY, False)),
    )


@contextmanager
def quiet_anndata() -> Iterator[None]:
    """Silences what anndata says of files that are checked here."""
    with warnings.catch_warnings():
        # it warns of older file versions and of names it would rather have otherwise
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _read_h5ad(file: Path) -> Any:
    anndata = require("anndata")
    try:
        with quiet_anndata():
            return anndata.read_h5ad(file)
    except Exception as error:  # its readers raise whatever HDF5, pandas or their own registry do
        raise DataError(
            f"{file}: cannot be read as an h5ad file ({' '.join(str(error).split())[:200]})"
        ) from error
