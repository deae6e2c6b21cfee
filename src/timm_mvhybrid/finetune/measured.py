"""A cohort's folder → samples: patches, and the counts of each, by spots or pooled from transcripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..cohorts.csv_tables import read_studies
from ..cohorts.hest_layout import open_task, read_spots
from ..cohorts.token_grid import pool_patches
from ..cohorts.transcripts import read_transcripts
from ..data.h5_file import H5File, attributes, find_dataset, number
from ..data.patch_h5 import PatchH5Source
from ..runtime.errors import DataError
from ..runtime.extras import require
from .cohort_entry import CohortEntry

STUDIES_NAME = "studies.csv"
_METADATA_KEY = "pixel_size_um_estimated"


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredSample:
    """A sample: patches, and what was counted of each.

    Attributes:
        entry: The cohort that it is of.
        sample_id: Its name.
        study: Its study; empty if unknown.
        patient: Its patient; empty if unknown.
        studies_file: The table that says so, or should.
        platform: Whether counts are of spots or of transcripts.
        source: The patches.
        genes: Measured genes.
        counts: Raw counts of each patch, (patches, genes), SciPy CSR, float32.
        measured: Whether a patch was measured: it has counts of a spot, or transcripts, (patches,).
        tokens: Counts in the cells of a grid over each patch, (patches, grid² · genes), SciPy CSR; None for spots.
        area_um2: Area that the counts of a patch are of; None if unknown.
        files: Files that were read.
        notes: What was left out, a sentence each.
    """

    entry: CohortEntry
    sample_id: str
    study: str
    patient: str
    studies_file: Path
    platform: Literal["spots", "transcripts"]
    source: PatchH5Source
    genes: tuple[str, ...]
    counts: Any
    measured: NDArray[np.bool_]
    tokens: Any
    area_um2: float | None
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def read_cohort(entry: CohortEntry, *, grid: int, min_qv: float) -> Iterator[MeasuredSample]:
    """Reads the samples of a cohort.

    Args:
        entry: The cohort.
        grid: Cells along a side of a patch that transcripts are pooled in.
        min_qv: Lowest quality of transcripts that count.

    Yields:
        The samples, by name.

    Raises:
        DataError: If the folder is no cohort, a sample lacks a file, or one cannot be read.
    """
    root = entry.path if entry.task is None else entry.path / entry.task
    has = {kind: (root / kind).is_dir() for kind in ("adata", "transcripts")}
    platform = entry.platform
    if platform == "auto":
        if all(has.values()):
            raise DataError(
                f"{root}: has both adata/ and transcripts/; choose by `platform='spots'` or `platform='transcripts'` in a "
                "manifest"
            )
        platform = "transcripts" if has["transcripts"] else "spots"
    if platform == "transcripts":
        names = _transcript_files(root)
    else:
        task = open_task(entry.path, entry.task)
        root, names = task.path, task.files
    studies_file = entry.studies or root / STUDIES_NAME
    studies: dict[str, str] = {}
    patients: dict[str, str] = {}
    if entry.studies is not None or studies_file.exists():
        studies, patients = read_studies(studies_file, sorted(names))
    for name in sorted(names):
        patches, measurement = names[name]
        facts = {
            "entry": entry,
            "sample_id": name,
            "study": studies.get(name, ""),
            "patient": patients.get(name, ""),
            "studies_file": studies_file,
        }
        if platform == "transcripts":
            yield _with_transcripts(facts, root, patches, measurement, grid, min_qv)
        else:
            yield _with_spots(facts, patches, measurement)


def _with_spots(facts: dict[str, Any], patches: Path, expression: Path) -> MeasuredSample:
    entry: CohortEntry = facts["entry"]
    found = read_spots(facts["sample_id"], patches, expression, entry.counts_layer, leave_out_unmeasured=True)
    source = PatchH5Source(patches)
    rows = np.arange(len(found.rows))
    place = require("scipy.sparse").csr_matrix(
        (np.ones(len(rows), np.float32), (found.rows, rows)), shape=(len(source), len(rows))
    )
    counts = (place @ found.counts.astype(np.float32)).tocsr()
    measured = np.diff(counts.indptr) > 0
    without = int((~measured).sum())
    return MeasuredSample(
        **facts,
        platform="spots",
        source=source,
        genes=tuple(found.genes),
        counts=counts,
        measured=measured,
        tokens=None,
        area_um2=entry.spot_area_um2,
        files=(patches, expression),
        notes=(f"{patches}: {without} of {len(source)} patches have no counts",) if without else (),
    )


def _transcript_files(root: Path) -> dict[str, tuple[Path, Path]]:
    found = {file.stem: file for file in sorted(root.glob("transcripts/*.parquet"))}
    if not found:
        raise DataError(
            f"{root}: has no transcripts/*.parquet; is it a cohort with patches/ and transcripts/?"
        )
    files = {}
    for name, file in found.items():
        patches = root / "patches" / f"{name}.h5"
        if not patches.is_file():
            raise DataError(
                f"{patches}: missing, and {file} exists; add the patches, or remove the transcripts"
            )
        files[name] = (patches, file)
    return files


def _with_transcripts(
    facts: dict[str, Any], root: Path, patches: Path, file: Path, grid: int, min_qv: float
) -> MeasuredSample:
    source = PatchH5Source(patches)
    side_px, um_per_px = _patch_sides(root, source, facts["entry"], facts["sample_id"])
    found = read_transcripts(file, min_qv=min_qv)
    assert source.coords is not None
    num_genes = len(found.genes)
    tokens = pool_patches(
        found.x_px, found.y_px, found.gene, source.coords, side_px=side_px, grid=grid, num_genes=num_genes
    )
    if not tokens.nnz:
        ranges = "; ".join(
            f"{axis}: transcripts {values.min():.0f} to {values.max():.0f}, patches {edges.min()} to {edges.max()}"
            for axis, values, edges in (
                ("x", found.x_px, source.coords[:, 0]),
                ("y", found.y_px, source.coords[:, 1]),
            )
        )
        raise DataError(
            f"{file}: no transcript lies in a patch of {patches} ({ranges} px); give both of one image"
        )
    counts = require("scipy.sparse").csr_matrix(
        (tokens.data, tokens.indices % num_genes, tokens.indptr), shape=(len(source), num_genes), copy=True
    )
    counts.sum_duplicates()
    return MeasuredSample(
        **facts,
        platform="transcripts",
        source=source,
        genes=found.genes,
        counts=counts,
        measured=np.diff(counts.indptr) > 0,
        tokens=tokens,
        area_um2=(side_px * um_per_px) ** 2,
        files=(patches, file),
        notes=(
            f"{file}: {len(found):,} transcripts of {num_genes} genes count; {found.left_out.describe(min_qv)}",
        ),
    )


def _patch_sides(root: Path, source: PatchH5Source, entry: CohortEntry, name: str) -> tuple[float, float]:
    """Finds the side of a patch in level-0 px, and the size of such a px in µm."""
    if source.coords is None or source.patch_size_px is None:
        what = "has no dataset 'coords'" if source.coords is None else "has patches that are not square"
        raise DataError(
            f"{source.path}: {what}, so transcripts cannot be placed in them; cut the patches again"
        )
    file = H5File(source.path)
    values = attributes(file, find_dataset(file, "img", "imgs"), find_dataset(file, "coords"))
    downsample, pixel_size = number(file, values, "downsample"), number(file, values, "pixel_size")
    file.close()
    if downsample is None:
        raise DataError(
            f"{source.path}: lacks the attribute 'downsample', level-0 px in one px of a patch; add it to the dataset 'img'"
        )
    um_per_px = entry.um_per_px or _from_metadata(root / "metadata" / f"{name}.json") or pixel_size
    if um_per_px is None:
        raise DataError(
            f"{source.path}: lacks the attribute 'pixel_size', µm in a level-0 px, and there is no metadata/{name}.json; "
            "give `um_per_px` in a manifest"
        )
    return source.patch_size_px * downsample, um_per_px


def _from_metadata(file: Path) -> float | None:
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get(_METADATA_KEY)
        return None if value is None or not float(value) > 0 else float(value)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: cannot be read as metadata in JSON ({error}); repair or remove it"
        ) from error
