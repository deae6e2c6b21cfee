"""Space Ranger's folder of a Visium sample → its spots in tissue, with raw counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tyro.conf import Positional, arg

from ..runtime.errors import DataError
from ..runtime.extras import require
from .array_placement import Placement, PlacementFit, check_right_angles, um_per_px_of_steps
from .spot_positions import Positions, find_positions, read_positions
from .spot_sample import PatchOptions, SpotSample
from .tenx_matrix import TenXMatrix, matrix_files, open_matrix

PITCH_UM = 100.0
"""Distance of neighbouring Visium spots, centre to centre."""

SPOT_SIZE_UM = 55.0
"""Diameter of a Visium spot; Space Ranger's spot_diameter_fullres is of another circle, and no measure of it."""

MATRICES = (
    "filtered_feature_bc_matrix.h5",
    "filtered_feature_bc_matrix",
    "raw_feature_bc_matrix.h5",
    "raw_feature_bc_matrix",
)
"""Matrices of counts, in the order in which they are looked for: raw ones hold spots outside tissue, too."""

FULL_IMAGE = "the image at full resolution that Space Ranger was given, and not tissue_hires_image.png, which it made smaller"
_FARTHEST = 0.2
"""Of the distance of neighbours: how far a spot may lie from its place in the array."""


@dataclass(frozen=True, kw_only=True)
class VisiumFolder:
    """Where a Visium sample is, see ``SpotSource``.

    Attributes:
        folder: Folder that Space Ranger calls outs, or the one around it.
        counts: Matrix of counts (h5, or folder of Matrix Market files); by default filtered_feature_bc_matrix.h5, or the
            folder of that name, or else the raw ones, of which spots outside tissue are left out.
        positions: Table of positions (csv, parquet); by default the one in spatial/.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    counts: Annotated[Path | None, arg(metavar="PATH")] = None
    positions: Annotated[Path | None, arg(metavar="FILE")] = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Matrix and table of positions."""
        matrix, positions = self._paths()
        return (*matrix_files(matrix), positions)

    def _paths(self) -> tuple[Path, Path]:
        folder = outs_folder(self.folder)
        return find_matrix(folder, self.counts), self.positions or find_positions(folder / "spatial")

    def read(self, sample_id: str, patches: PatchOptions | None = None) -> SpotSample:
        """Reads the spots in tissue, in the order of the table of positions.

        Args:
            sample_id: Name of the sample.
            patches: Not needed: spots are as they were printed.

        Raises:
            DataError: If a file is missing, damaged, or not what it should be, or the files are not of one run.
        """
        matrix_path, positions_path = self._paths()
        matrix = open_matrix(matrix_path)
        positions = read_positions(positions_path)
        placement, um_per_px, lattice = _measure(positions_path, positions)
        barcodes, values = _read_all(matrix)
        # first, because a transposed matrix may have all kinds of barcodes
        matrix.check_barcodes(barcodes, set(positions.barcodes.tolist()), positions_path)
        row_of = {name: row for row, name in enumerate(barcodes)}
        if len(row_of) < len(barcodes):
            raise DataError(f"{matrix_path}: a barcode occurs more than once; give the matrix of one sample")
        names = positions.barcodes.tolist()
        kept = [index for index in np.flatnonzero(positions.in_tissue) if names[index] in row_of]
        if not kept:
            raise DataError(
                f"{positions_path}: none of the {len(barcodes)} spots of {matrix_path.name} is in tissue; give the files of one run"
            )
        counts = matrix.features.to_genes(values[[row_of[names[index]] for index in kept]]).astype(np.float64)
        counts.sum_duplicates()
        return SpotSample(
            sample_id=sample_id,
            barcodes=tuple(names[index].decode() for index in kept),
            genes=matrix.features.genes,
            counts=counts,
            spatial=positions.spatial[kept],
            um_per_px=um_per_px,
            spot_size_um=SPOT_SIZE_UM,
            gene_ids=matrix.features.gene_ids,
            columns={
                "array_row": positions.array_row[kept],
                "array_col": positions.array_col[kept],
            },
            image=FULL_IMAGE,
            image_size_px=stated_image_size(positions_path.parent),
            files=self.files,
            notes={
                "platform": "Visium",
                "matrix": matrix_path.name,
                "positions": positions_path.name,
                "um_per_px": um_per_px,
                "array": lattice,
                "rotation_degrees": None if placement is None else placement.rotation_degrees,
                "num_spots_outside_tissue": len(row_of)
                - sum(names[index] in row_of for index in np.flatnonzero(positions.in_tissue)),
                "num_in_tissue_without_counts": int(positions.in_tissue.sum()) - len(kept),
                **matrix.features.notes,
            },
        )


def outs_folder(folder: Path) -> Path:
    """Finds Space Ranger's ``outs`` in a folder, or takes the folder for it; raises DataError if there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that Space Ranger calls outs")
    inner = folder / "outs"
    return inner if inner.is_dir() else folder


def find_matrix(folder: Path, given: Path | None) -> Path:
    """Finds the matrix of counts, see ``MATRICES``; raises DataError if there is none."""
    if given is not None:
        if not given.exists():
            raise DataError(f"{given}: no such file or folder; give Space Ranger's {MATRICES[0]} by `counts`")
        return given
    found = next((path for name in MATRICES if (path := folder / name).exists()), None)
    if found is None:
        raise DataError(
            f"{folder}: has neither {MATRICES[0]} nor the folder {MATRICES[1]}; give the folder that Space Ranger calls outs, or "
            "name the matrix by `counts`"
        )
    return found


def stated_image_size(spatial: Path) -> tuple[float, float] | None:
    """Computes how large Space Ranger's image was, width and height, from its smaller copy; None if that is not there."""
    try:
        scale = float(json.loads((spatial / "scalefactors_json.json").read_text())["tissue_hires_scalef"])
        with Image.open(spatial / "tissue_hires_image.png") as small:
            width, height = small.size
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):
        return None
    return (width / scale, height / scale) if 0 < scale < np.inf else None


def _read_all(matrix: TenXMatrix) -> tuple[list[bytes], Any]:
    chunks = list(matrix.chunks())
    barcodes = [name for chunk in chunks for name in chunk.barcodes.tolist()]
    return barcodes, require("scipy.sparse").vstack([chunk.values for chunk in chunks], format="csr")


def _measure(path: Path, positions: Positions) -> tuple[Placement | None, float | None, str]:
    """Fits the array to the image: the size of a px, None where the spots do not give it, and the kind of array."""
    fit = PlacementFit()
    fit.add(positions.array_row, positions.array_col, positions.spatial)
    placement = fit.solve()
    if placement is None:
        return None, None, "all spots in one row or column"
    check_right_angles(path, placement)
    # in rows that are shifted by half a step every second column is empty
    is_shifted = len(np.unique((positions.array_row + positions.array_col) % 2)) == 1
    row, col = placement.per_row, placement.per_col
    steps: Sequence[NDArray[np.float64]] = (2 * col, row + col, row - col) if is_shifted else (row, col)
    um_per_px = um_per_px_of_steps(path, list(steps), PITCH_UM, "neighbouring spots")
    places = placement(positions.array_row.astype(np.float64), positions.array_col.astype(np.float64))
    off_um = np.hypot(*(positions.spatial - places).T) * um_per_px
    if off_um.max() > _FARTHEST * PITCH_UM:
        worst = int(off_um.argmax())
        raise DataError(
            f"{path}: barcode '{positions.barcodes[worst].decode()}' lies {off_um[worst]:.0f} µm from its place in the array; "
            "check the table"
        )
    return placement, um_per_px, "rows shifted by half a step" if is_shifted else "square"
