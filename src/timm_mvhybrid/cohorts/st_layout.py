"""Sections of Spatial Transcriptomics (image, table of counts, table of spots) → samples, and a task in HEST's layout.

``<root>/{images/<id>.jpg, counts/<id>.tsv.gz, spots/<id>_selection.tsv, sections.json}``, as the HER2ST data are spread;
``sections.json`` is optional and says whose each section is: ``{"B4": {"patient": "B"}}``.
"""

from __future__ import annotations

import csv
import gzip
import json
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..runtime.atomic_file import write_files
from ..runtime.errors import DataError
from ..runtime.extras import require
from ..runtime.names import unique_positions
from .hest_writer import write_sample, write_split

PITCH_UM = 200.0
"""Distance of neighbouring spots of Spatial Transcriptomics, centre to centre."""

_SPOT_COLUMNS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y")
_WHITE = (255, 255, 255)
_LARGEST_DISAGREEMENT = 0.05
"""Between the sizes of a px that columns and rows of spots give."""


@dataclass(frozen=True, eq=False, kw_only=True)
class STSample:
    """One section: spots with their counts, and patches around them.

    Attributes:
        sample_id: Its name.
        barcodes: ``XxY`` of each spot, its place in the array.
        genes: Gene symbols.
        counts: Raw counts, (spots, genes), SciPy CSR, float64.
        spatial: Centres in px of the image, (spots, 2) as x, y.
        patches: Around the centres, (spots, size, size, 3) uint8; white beyond the image.
        coords: Top-left corners in px of the image, (spots, 2) int64.
        um_per_px: Size of a px of the image in µm.
        resolution_um_per_px: Of the patches.
        num_unmatched: Spots of only one of both tables, which are left out.
    """

    sample_id: str
    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    counts: Any
    spatial: NDArray[np.float64]
    patches: NDArray[np.uint8]
    coords: NDArray[np.int64]
    um_per_px: float
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
    """Reads one section and cuts a patch around each spot.

    Args:
        image: The stained section.
        counts: Table with tabs, plain or compressed: genes in the header, a row ``XxY`` for each spot.
        spots: Table with tabs and the columns x, y (place in the array), new_x, new_y (the same, adjusted to the print)
            and pixel_x, pixel_y (centre in the image); ``selected`` 0 leaves a spot out.
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
    image, counts, spots = Path(image), Path(counts), Path(spots)
    if patch_size_px < 1 or not 0 < resolution_um_per_px < np.inf:
        raise DataError(
            f"`patch_size_px` is {patch_size_px} and `resolution_um_per_px` {resolution_um_per_px}; both must be above 0"
        )
    places = _read_spots(spots)
    rows, genes, values = _read_counts(counts)
    kept = [name for name in places if name in rows]
    if not kept:
        raise DataError(
            f"{spots} and {counts} share no spot ('{next(iter(places))}' …, '{next(iter(rows))}' …); give the tables of one section"
        )
    if um_per_px is None:
        um_per_px = _um_per_px(spots, np.array(list(places.values())), pitch_um)
    centres = np.array([places[name][2:] for name in kept])
    side_px = patch_size_px * resolution_um_per_px / um_per_px
    return STSample(
        sample_id=sample_id or image.stem,
        barcodes=tuple(kept),
        genes=genes,
        counts=values[[rows[name] for name in kept]],
        spatial=centres,
        patches=_cut(image, centres, side_px, patch_size_px),
        coords=np.round(centres - side_px / 2).astype(np.int64),
        um_per_px=um_per_px,
        resolution_um_per_px=resolution_um_per_px,
        num_unmatched=len(places) + len(rows) - 2 * len(kept),
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
) -> Path:
    """Writes sections as a task in HEST's layout, with ``studies.csv`` and the splits that leave one patient out each.

    Args:
        root: Folder of the sections.
        output: The task's folder.
        study: Name of the study that all are of.
        sections: Their names; None takes all.
        leave_out: What each split leaves out; a section that is left out may have others of its patient in training,
            which flatters. No splits are written where patients are unknown, or where there is one.
        patch_size_px: Side of the patches.
        resolution_um_per_px: Of the patches.

    Returns:
        The task's folder.

    Raises:
        DataError: If there is no section, one lacks a file, or a section cannot be read.
        OutputError: If the disk does not take it.
    """
    root, output = Path(root), Path(output)
    if leave_out not in ("patient", "section"):
        raise DataError(f"`leave_out` is {leave_out!r}; choose from patient, section")
    files = _sections(root)
    names = sorted(files) if sections is None else list(sections)
    for name in names:
        if name not in files:
            raise DataError(f"{root}: has no section '{name}'; it has {', '.join(sorted(files))}")
    patient_of = _patients(root / "sections.json", names)
    for name in names:
        image, counts, spots = files[name]
        sample = read_st_sample(
            image,
            counts,
            spots,
            sample_id=name,
            patch_size_px=patch_size_px,
            resolution_um_per_px=resolution_um_per_px,
        )
        write_sample(
            output,
            name,
            patches=sample.patches,
            coords=sample.coords,
            barcodes=sample.barcodes,
            counts=sample.counts.toarray(),
            genes=sample.genes,
            spatial=sample.spatial,
            attributes={
                "pixel_size": sample.um_per_px,
                "downsample": resolution_um_per_px / sample.um_per_px,
                "patch_size_target": patch_size_px,
            },
        )
    lines = ["sample_id,study" + (",patient" if patient_of else "")]
    lines += [f"{name},{study}" + (f",{patient_of[name]}" if patient_of else "") for name in names]
    write_files({output / "studies.csv": "\n".join(lines) + "\n"})
    group_of = patient_of if leave_out == "patient" else {name: name for name in names}
    groups = sorted(set(group_of.values()))
    if len(groups) > 1:
        for number, group in enumerate(groups):
            held_out = [name for name in names if group_of[name] == group]
            write_split(output, number, [name for name in names if name not in held_out], held_out)
    return output


def _sections(root: Path) -> dict[str, tuple[Path, Path, Path]]:
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
        found[name] = (image, counts, spots)
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
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode("utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines(), delimiter="\t", strict=True) if row]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file}: cannot be read as a table ({getattr(error, 'strerror', None) or error})"
        ) from error
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


def _cut(file: Path, centres: NDArray[np.float64], side_px: float, patch_size_px: int) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            # sections have more pixels than Pillow expects of a picture
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read as an image ({error})") from error
    width, height = image.size
    outside = [f"{x:g}, {y:g}" for x, y in centres.tolist() if not (0 <= x < width and 0 <= y < height)]
    if outside:
        raise DataError(
            f"{file}: the spot at {outside[0]} px lies outside the image of {width} × {height} px ({len(outside)} do); give "
            "the image at the resolution that the table of spots is of"
        )
    border = int(np.ceil(side_px / 2)) + 1
    image = ImageOps.expand(image, border, _WHITE)
    patches = np.empty((len(centres), patch_size_px, patch_size_px, 3), dtype=np.uint8)
    for index, (x, y) in enumerate((centres + border - side_px / 2).tolist()):
        box = (x, y, x + side_px, y + side_px)
        patches[index] = np.asarray(
            image.resize((patch_size_px, patch_size_px), Image.Resampling.BICUBIC, box=box)
        )
    return patches
