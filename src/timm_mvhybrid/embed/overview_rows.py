"""Folder of embedded slides → one row a slide: from ``cohort.jsonl`` where there is one, and from the h5 files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data import DataError, SlideInput
from ..data.slide_list import slides_directly_in
from .embedding_store import StoredPatches, read_patches
from .slide_cohort import COHORT_FILE, SlideRecord, read_records

OverviewState = Literal["done", "failed", "empty", "missing", "unreadable"]
_MOST_CELLS = 50_000_000
_FINEST = 16


@dataclass(frozen=True, kw_only=True)
class OverviewRow:
    """One slide of a cohort.

    Attributes:
        slide_id: The slide.
        state: "done"; "failed" or "empty" by its record; "missing" if its record is of a file that is gone; "unreadable".
        problem: Cause and remedy where it is not done; what was noticed otherwise.
        tiles: Embedded.
        tiled_mm2: Area of the tiles in mm², what overlaps once; None where sizes are not stated.
        tissue_mm2: Area of the tissue by the mask of ``tile``, in mm²; None where the slide is not at hand.
        seconds: Wall-clock time of its last try; None without a record.
        attempts: How often it was tried; None without a record.
        finished: When, UTC in ISO 8601; empty without a record.
        model: That embedded it; empty unless it is done.
        weights_sha256: Of the model's weights; empty unless it is done.
        picture: Of the slide with its tiles, relative to the page; empty where there is none.
        components: Of the features as colours, relative to the page; empty where there is none.
        stamp: What the picture was drawn from; empty where there is none.
    """

    slide_id: str
    state: OverviewState
    problem: str = ""
    tiles: int = 0
    tiled_mm2: float | None = None
    tissue_mm2: float | None = None
    seconds: float | None = None
    attempts: int | None = None
    finished: str = ""
    model: str = ""
    weights_sha256: str = ""
    picture: str = ""
    components: str = ""
    stamp: str = ""

    @property
    def tiles_per_second(self) -> float | None:
        """Throughput of the slide by itself; None without a time."""
        return self.tiles / self.seconds if self.seconds and self.tiles else None


@dataclass(frozen=True, eq=False, kw_only=True)
class FoundSlide:
    """A row, and what its pictures are drawn from.

    Attributes:
        row: What is known without the slide.
        patches: Of its file; None unless it is done.
        slide: The slide, if it is at hand.
    """

    row: OverviewRow
    patches: StoredPatches | None = None
    slide: Path | None = None


def find_slides(folder: str | Path, slides: str | Path | None = None) -> list[FoundSlide]:
    """Lists the slides of a folder by name.

    Args:
        folder: Of ``<slide_id>.h5`` files, with ``cohort.jsonl`` or without.
        slides: Folder of the slides, for files that do not say where theirs is; None looks beside the h5.

    Raises:
        DataError: There is no such folder, or nothing in it was embedded.
    """
    folder = Path(folder)
    for given in (folder, *([] if slides is None else [Path(slides)])):
        if not given.is_dir():
            raise DataError(f"{given}: no such folder")
    records = read_records(folder) if (folder / COHORT_FILE).is_file() else {}
    files = {file.stem: file for file in folder.glob("*.h5") if not file.name.startswith(".")}
    if not records and not files:
        raise DataError(f"{folder}: holds no embedded slides (h5 files); give a folder that 'embed' wrote")
    # folders there are exports of ours
    places = _by_name(slide for slide in slides_directly_in(folder) if not slide.path.is_dir())
    if slides is not None:
        places |= _by_name(slides_directly_in(Path(slides)))
    return [_find(name, records.get(name), files.get(name), places) for name in sorted({*records, *files})]


def _by_name(slides: Iterable[SlideInput]) -> dict[str, Path]:
    """Lists slides by name with and without suffix, and by id, which of DICOM may be the series."""
    return {
        name: slide.path
        for slide in slides
        for name in (slide.path.name, slide.path.stem, slide.slide_id)
        if isinstance(slide.path, Path)
    }


def _find(name: str, record: SlideRecord | None, file: Path | None, places: dict[str, Path]) -> FoundSlide:
    times: dict[str, Any] = {} if record is None else _times(record)
    if record is not None and record.state != "done":
        return FoundSlide(row=OverviewRow(slide_id=name, state=record.state, problem=record.error, **times))
    if file is None:
        problem = f"{name}.h5 is gone; embed the slide again"
        return FoundSlide(row=OverviewRow(slide_id=name, state="missing", problem=problem, **times))
    try:
        patches = read_patches(file)
    except DataError as error:
        problem = f"{error}; remove the file, and embed the slide again"
        return FoundSlide(row=OverviewRow(slide_id=name, state="unreadable", problem=problem, **times))
    stated = patches.attributes
    row = OverviewRow(
        slide_id=name,
        state="done",
        problem="; ".join(() if record is None else record.warnings),
        tiles=patches.num_patches,
        tiled_mm2=tiled_mm2(patches),
        model=patches.model,
        weights_sha256=str(stated.get("weights_sha256", "unknown")),
        **times,
    )
    candidates = [Path(record.path)] if record is not None and record.path else []
    candidates += [places[key] for key in (stated.get("slide"), stated.get("source"), name) if key in places]
    return FoundSlide(
        row=row, patches=patches, slide=next((path for path in candidates if path.exists()), None)
    )


def _times(record: SlideRecord) -> dict[str, Any]:
    return {"seconds": record.seconds, "attempts": record.attempts, "finished": record.finished}


def side_level0(patches: StoredPatches) -> float | None:
    """Finds out how wide patches are in level-0 px: as stated, otherwise as far as the nearest ones are apart."""
    if patches.patch_size_level0 is not None or patches.coords is None:
        return patches.patch_size_level0
    steps = [step for axis in patches.coords.T for step in np.diff(np.unique(axis)).tolist()]
    return float(min(steps)) if steps else None


def tiled_mm2(patches: StoredPatches) -> float | None:
    """Measures the area of tiles in mm²; None where their size in µm or px is not stated."""
    um_per_px, side = patches.um_per_px_level0, patches.patch_size_level0
    if um_per_px is None or side is None or patches.coords is None:
        return None
    return covered_area(patches.coords, side) * um_per_px**2 / 1e6


def covered_area(corners: NDArray[np.int64], side: float) -> float:
    """Measures what squares cover together, what overlaps once.

    Corners, (N, 2), and side have one unit, of which the area has the square. Squares that lie on no common grid count
    to a sixteenth of their side.

    Examples:
        >>> covered_area(np.array([[0, 0], [5, 0]]), 10.0)
        150.0
    """
    starts = np.asarray(corners, dtype=np.float64)
    axes = [np.unique([axis, axis + side]) for axis in starts.T]
    if len(axes[0]) * len(axes[1]) > _MOST_CELLS:
        starts = np.round(starts * _FINEST / side) * side / _FINEST
        axes = [np.unique([axis, axis + side]) for axis in starts.T]
    (left, top), (right, bottom) = (
        [np.searchsorted(axis, values) for axis, values in zip(axes, places.T, strict=True)]
        for places in (starts, starts + side)
    )
    # the difference array of a sum over the plane: one more inside each square, one less beyond it
    change = np.zeros((len(axes[1]), len(axes[0])), dtype=np.int32)
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(change, (rows, columns), sign)
    covered = change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    return float(np.diff(axes[1]) @ covered @ np.diff(axes[0]))


def busy_seconds(rows: Sequence[OverviewRow]) -> float | None:
    """Measures the time in which slides were worked on, those at the same time once; None without times."""
    spans = []
    for row in rows:
        if row.seconds and row.finished and row.tiles:
            try:
                stop = datetime.fromisoformat(row.finished.replace("Z", "+00:00")).timestamp()
            except ValueError:
                continue
            spans.append((stop - row.seconds, stop))
    total, last = 0.0, -np.inf
    for start, stop in sorted(spans):
        total += max(stop - max(start, last), 0.0)
        last = max(last, stop)
    return total if spans else None
