"""Sections of Spatial Transcriptomics (image, table of counts, table of spots) → samples, and a task in HEST's layout.

``<root>/{images/<id>.jpg, counts/<id>.tsv.gz, spots/<id>_selection.tsv, sections.json}``, as the HER2ST data are spread;
``sections.json`` is optional and says whose each section is: ``{"B4": {"patient": "B"}}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from ..runtime.extras import require
from ..runtime.names import unique_positions
from .csv_tables import read_tabs
from .prepare import PreparedSample, prepare_sample
from .spot_patches import SpotPatches
from .spot_sample import PatchOptions, SpotSample

PITCH_UM = 200.0
"""Distance of neighbouring spots of Spatial Transcriptomics, centre to centre."""

SPOT_SIZE_UM = 100.0
"""Diameter of a spot."""

_SPOT_COLUMNS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y")
_LARGEST_DISAGREEMENT = 0.05
"""Between the sizes of a px that columns and rows of spots give."""


@dataclass(frozen=True, kw_only=True)
class STSection:
    """Where one section is, see ``SpotSource``.

    Attributes:
        image: The stained section.
        counts: Table with tabs, plain or compressed: genes in the header, a row ``XxY`` for each spot.
        spots: Table with tabs and the columns x, y (place in the array), new_x, new_y (the same, adjusted to the print)
            and pixel_x, pixel_y (centre in the image); ``selected`` 0 leaves a spot out.
        pitch_um: Distance of neighbouring spots in µm, which gives the size of a px.
        um_per_px: That size in µm, for sections whose spots do not give it; None derives it.
    """

    image: Path
    counts: Path
    spots: Path
    pitch_um: float = PITCH_UM
    um_per_px: float | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The two tables."""
        return self.counts, self.spots

    def read(self, sample_id: str, patches: PatchOptions | None = None) -> SpotSample:
        """Reads the section, spots in the order of the table of spots.

        Args:
            sample_id: Its name.
            patches: Not needed: spots are as they were printed.

        Raises:
            DataError: If a table cannot be read or is none, values are not counts, a spot or gene occurs twice, both
                tables share no spot, or the size of a px does not follow from the spots.
        """
        places = _read_spots(self.spots)
        rows, genes, values = _read_counts(self.counts)
        kept = [name for name in places if name in rows]
        if not kept:
            raise DataError(
                f"{self.spots} and {self.counts} share no spot ('{next(iter(places))}' …, '{next(iter(rows))}' …); give the "
                "tables of one section"
            )
        um_per_px = self.um_per_px
        if um_per_px is None:
            um_per_px = _um_per_px(self.spots, np.array(list(places.values())), self.pitch_um)
        return SpotSample(
            sample_id=sample_id,
            barcodes=tuple(kept),
            genes=genes,
            counts=values[[rows[name] for name in kept]],
            spatial=np.array([places[name][2:] for name in kept]),
            um_per_px=um_per_px,
            spot_size_um=SPOT_SIZE_UM,
            image="the image at the resolution that the table of spots is of",
            files=self.files,
            notes={
                "platform": "Spatial Transcriptomics",
                "um_per_px": um_per_px,
                "num_unmatched": len(places) + len(rows) - 2 * len(kept),
            },
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class STSample(SpotSample):
    """One section with patches around its spots.

    Attributes:
        patches: Around the centres, (spots, size, size, 3) uint8; white beyond the image.
        coords: Top-left corners in px of the image, (spots, 2) int64.
        resolution_um_per_px: Of the patches.
        num_unmatched: Spots of only one of both tables, which are left out.
    """

    patches: NDArray[np.uint8]
    coords: NDArray[np.int64]
    resolution_um_per_px: float
    num_unmatched: int


def read_st_sample(
    image: str | Path,
    counts: str | Path,
    spots: str | Path,
    *,
    sample_id: str | None = None,
    patch_size_px: int = 224,
    resolution_um_per_px: float = 0.5,
    um_per_px: float | None = None,
    pitch_um: float = PITCH_UM,
) -> STSample:
    """Reads one section and cuts a patch around each spot, all of them in memory.

    Args:
        image: The stained section.
        counts: Table of counts, see ``STSection``.
        spots: Table of spots, see ``STSection``.
        sample_id: Its name; the image's by default.
        patch_size_px: Side of the patches.
        resolution_um_per_px: Of the patches.
        um_per_px: Size of a px of the image; None derives it from the distance of neighbouring spots.
        pitch_um: That distance.

    Returns:
        The section, spots in the order of the table of spots.

    Raises:
        DataError: If a file cannot be read or is no such table, values are not counts, a spot or gene occurs twice, both
            tables share no spot, or the size of a px does not follow from the spots.
    """
    options = PatchOptions(patch_size_px=patch_size_px, resolution_um_per_px=resolution_um_per_px)
    section = STSection(
        image=Path(image), counts=Path(counts), spots=Path(spots), um_per_px=um_per_px, pitch_um=pitch_um
    )
    sample = section.read(sample_id or section.image.stem)
    cut = SpotPatches(sample, section.image, options, um_per_px=um_per_px)
    return STSample(
        **{field.name: getattr(sample, field.name) for field in fields(SpotSample)},
        patches=np.stack([np.asarray(cut[index]) for index in range(len(cut))]),
        coords=cut.coords,
        resolution_um_per_px=cut.resolution_um_per_px,
        num_unmatched=sample.notes["num_unmatched"],
    )


def write_st_task(
    root: str | Path,
    output: str | Path,
    *,
    study: str,
    sections: Sequence[str] | None = None,
    leave_out: Literal["patient", "section"] = "patient",
    patch_size_px: int = 224,
    resolution_um_per_px: float = 0.5,
    overwrite: bool = False,
    on_section: Callable[[PreparedSample], None] | None = None,
) -> Path:
    """Writes sections as a task in HEST's layout, with ``studies.csv`` and the splits that leave one patient out each.

    Args:
        root: Folder of the sections.
        output: The task's folder; sections that it has already, prepared in the same way, are kept.
        study: Name of the study that all are of.
        sections: Their names; None takes all.
        leave_out: What each split leaves out; a section that is left out may have others of its patient in training,
            which flatters. No splits are written where patients are unknown, or where there is one.
        patch_size_px: Side of the patches.
        resolution_um_per_px: Of the patches.
        overwrite: Replace sections that were prepared otherwise.
        on_section: Called after each section.

    Returns:
        The task's folder.

    Raises:
        DataError: If there is no section, one lacks a file, cannot be read or was prepared otherwise.
        OutputError: If the disk does not take it.
    """
    root, output = Path(root), Path(output)
    if leave_out not in ("patient", "section"):
        raise DataError(f"`leave_out` is {leave_out!r}; choose from patient, section")
    files = find_sections(root)
    names = sorted(files) if sections is None else list(sections)
    for name in names:
        if name not in files:
            raise DataError(f"{root}: has no section '{name}'; it has {', '.join(sorted(files))}")
    patient_of = _patients(root / "sections.json", names)
    for name in names:
        prepared = prepare_sample(
            files[name],
            files[name].image,
            output,
            sample_id=name,
            study=study,
            patient=patient_of.get(name),
            patches=PatchOptions(patch_size_px=patch_size_px, resolution_um_per_px=resolution_um_per_px),
            leave_out="patient" if leave_out == "patient" else "sample",
            overwrite=overwrite,
        )
        if on_section is not None:
            on_section(prepared)
    return output


def find_sections(root: Path) -> dict[str, STSection]:
    """Finds the sections of a folder by their images; raises DataError if there is none or one lacks a table."""
    found = {}
    for image in sorted(root.glob("images/*")):
        name = image.stem
        if image.name.startswith(".") or not image.is_file():
            continue
        counts = next(
            (file for end in (".tsv.gz", ".tsv") if (file := root / "counts" / f"{name}{end}").is_file()),
            None,
        )
        spots = root / "spots" / f"{name}_selection.tsv"
        missing = root / "counts" / f"{name}.tsv.gz" if counts is None else spots
        if counts is None or not spots.is_file():
            raise DataError(f"{missing}: missing, and {image} exists; add it, or remove the image")
        found[name] = STSection(image=image, counts=counts, spots=spots)
    if not found:
        raise DataError(
            f"{root}: no image in its folder images; is it a folder of images/, counts/ and spots/?"
        )
    return found


def _patients(file: Path, names: Sequence[str]) -> dict[str, str]:
    if not file.exists():
        return {}
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {name: str(known[name]["patient"]) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{file}: must hold {{"{names[0]}": {{"patient": "…"}}, …}} ({error}); repair or remove it'
        ) from error


def _table(file: Path) -> list[list[str]]:
    rows = read_tabs(file)
    if len(rows) < 2:
        raise DataError(f"{file}: holds no spot; give a table with a header and a row for each spot")
    return rows


def _read_spots(file: Path) -> dict[str, tuple[float, float, float, float]]:
    """Spot → adjusted place in the array, centre in px."""
    header, *rows = _table(file)
    missing = [name for name in _SPOT_COLUMNS if name not in header]
    if missing:
        raise DataError(f"{file}: lacks the column '{missing[0]}'; it has {', '.join(header)}")
    column = {name: header.index(name) for name in header}
    found: dict[str, tuple[float, float, float, float]] = {}
    for line, row in enumerate(rows, start=2):
        try:
            if "selected" in column and not int(row[column["selected"]]):
                continue
            x, y = (int(row[column[name]]) for name in ("x", "y"))
            u, v, px, py = (float(row[column[name]]) for name in _SPOT_COLUMNS[2:])
        except (IndexError, ValueError) as error:
            raise DataError(f"{file}: line {line} is no spot ({error}); repair it") from error
        if f"{x}x{y}" in found:
            raise DataError(f"{file}: line {line} repeats the spot {x}x{y}; keep one of them")
        found[f"{x}x{y}"] = (u, v, px, py)
    if not found or not np.isfinite(list(found.values())).all():
        raise DataError(
            f"{file}: {'no spot is selected' if not found else 'a place is not finite'}; repair the table"
        )
    return found


def _read_counts(file: Path) -> tuple[dict[str, int], tuple[str, ...], Any]:
    """Spot → row, genes, and counts in CSR."""
    header, *rows = _table(file)
    genes = tuple(header[1:])
    unique_positions(file, "gene", genes, "make the names unique, or add its columns together")
    position = unique_positions(file, "spot", [row[0] for row in rows], "give each spot one row")
    values = np.empty((len(rows), len(genes)))
    for index, row in enumerate(rows):
        if len(row) != len(genes) + 1:
            raise DataError(
                f"{file}: spot '{row[0]}' has {len(row) - 1} values for {len(genes)} genes; repair its row"
            )
        try:
            values[index] = row[1:]
        except ValueError as error:
            raise DataError(f"{file}: spot '{row[0]}' has a value that is no number ({error})") from error
    wrong = ~(np.isfinite(values) & (values >= 0) & (values == np.round(values)))
    if wrong.any():
        row_index, gene = (int(place[0]) for place in wrong.nonzero())
        raise DataError(
            f"{file}: spot '{rows[row_index][0]}', gene '{genes[gene]}' has the value {values[row_index, gene]:g}, which is "
            "not a count; give raw counts"
        )
    return position, genes, require("scipy.sparse").csr_matrix(values)


def _um_per_px(file: Path, places: NDArray[np.float64], pitch_um: float) -> float:
    """Derives the size of a px from lines through centres against places in the array."""
    found = []
    for array, pixel in ((places[:, 0], places[:, 2]), (places[:, 1], places[:, 3])):
        spread = array - array.mean()
        if not spread.any():
            raise DataError(
                f"{file}: all spots are in one row or column, which gives no size of a px; give `um_per_px`"
            )
        found.append(pitch_um / abs(float(spread @ pixel / (spread @ spread))))
    across, down = found
    if abs(across / down - 1) > _LARGEST_DISAGREEMENT:
        raise DataError(
            f"{file}: a px is {across:.3f} µm by the columns and {down:.3f} µm by the rows of the spots; check the table, or "
            "give `um_per_px`"
        )
    return float(across + down) / 2
