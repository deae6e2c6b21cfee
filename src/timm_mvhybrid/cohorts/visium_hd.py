"""Space Ranger's folder of a Visium HD sample → squares of bins as large as a patch, with the sums of their counts."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, arg

from ..runtime.errors import DataError, ParameterError
from .array_placement import Placement, PlacementFit, check_right_angles, um_per_px_of_steps
from .bin_sums import BinNames, SquareGrid, sum_bins
from .space_ranger import FULL_IMAGE, find_matrix, outs_folder, stated_image_size
from .spot_patches import LARGEST_DISAGREEMENT
from .spot_positions import Positions, find_positions, iterate_positions
from .spot_sample import PatchOptions, SpotSample
from .tenx_matrix import TenXMatrix, matrix_files, open_matrix

_BIN_FOLDER = re.compile(r"square_(\d+)um")
_PREFERRED_UM = (8, 2)
"""Sizes of bins that are read rather than others: sums are the same, and fewer bins are read sooner."""
_UNSEEN, _OUTSIDE, _IN_TISSUE = 0, 1, 2
_LARGEST_TILT_DEGREES = 5.0
"""Between bins and patches, whose sides follow the image; beyond it they no longer cover the same tissue."""
_FARTHEST_UM = 10.0
"""How far bins may lie from the places that the grid gives them, root mean square."""

Place = Callable[[NDArray[np.bytes_]], tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, kw_only=True)
class VisiumHDFolder:
    """Where a Visium HD sample is, see ``SpotSource``, and how its bins become pseudo-spots.

    Attributes:
        folder: Folder that Space Ranger calls outs, the one around it, binned_outputs, or one of its square_…um.
        bin_size_um: Size of the bins that are read in µm, of which a patch must have a whole number; by default 8, or
            else 2, or what there is.
        stride_px: Distance of neighbouring pseudo-spots in px of the patches; by default a patch's side, so that every bin
            is in one.
        min_tissue: Smallest fraction (0 to 1) of a pseudo-spot's bins that must be in tissue.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    bin_size_um: Annotated[int | None, arg(metavar="UM")] = None
    stride_px: Annotated[float | None, arg(name="stride", metavar="PX")] = None
    min_tissue: Annotated[float, arg(metavar="FRACTION")] = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.min_tissue <= 1:
            raise ParameterError(f"`min_tissue` must lie between 0 and 1, not {self.min_tissue}")

    @property
    def files(self) -> tuple[Path, ...]:
        """Matrix, table of positions and scale factors of the bins that are read."""
        _, folder = self._bins()
        factors = folder / "spatial" / "scalefactors_json.json"
        return (
            *matrix_files(find_matrix(folder, None)),
            find_positions(folder / "spatial"),
            *([factors] if factors.is_file() else []),
        )

    def _bin_folders(self) -> dict[int, Path]:
        """Size of bins in µm → its folder."""
        outs = outs_folder(self.folder)
        inner = outs / "binned_outputs"
        candidates = [self.folder] if _BIN_FOLDER.fullmatch(self.folder.resolve().name) else []
        candidates += sorted((inner if inner.is_dir() else outs).glob("square_*um"))
        return {
            int(match[1]): folder
            for folder in candidates
            if folder.is_dir() and (match := _BIN_FOLDER.fullmatch(folder.resolve().name))
        }

    def _bins(self) -> tuple[int, Path]:
        """Chooses the bins: their size in µm, and their folder."""
        folders = self._bin_folders()
        for size in (*_PREFERRED_UM, *sorted(folders)) if self.bin_size_um is None else (self.bin_size_um,):
            if size in folders:
                return size, folders[size]
        wanted = "…" if self.bin_size_um is None else f"{self.bin_size_um:03d}"
        has = f"; it has {', '.join(folder.name for folder in folders.values())}" if folders else ""
        raise DataError(
            f"{self.folder}: has no folder binned_outputs/square_{wanted}um{has}; give the folder that Space Ranger calls outs"
        )

    def _squares(self, size: int, patches: PatchOptions) -> tuple[int, int]:
        """Computes side and stride of a square in bins."""
        stride_um = (
            patches.side_um if self.stride_px is None else self.stride_px * patches.resolution_um_per_px
        )
        if not 0 < stride_um < np.inf:
            raise ParameterError(f"`stride_px` must be finite and above 0, not {self.stride_px}")
        side, stride = round(patches.side_um / size), round(stride_um / size)
        inexact = max(abs(side * size - patches.side_um), abs(stride * size - stride_um)) > 1e-6
        if inexact or min(side, stride) < 1:
            smaller = [one for one in sorted(self._bin_folders()) if one < size]
            remedy = f"read smaller bins by `bin_size_um={smaller[0]}`, or " if smaller else ""
            raise ParameterError(
                f"patches of {patches.side_um:g} µm every {stride_um:g} µm are not whole numbers of bins of {size} µm; {remedy}change "
                "`patch_size_px`, `resolution_um_per_px` or `stride_px`"
            )
        return side, stride

    def read(self, sample_id: str, patches: PatchOptions | None = None) -> SpotSample:
        """Adds bins in tissue up to squares of the patches' size, on the grid of the bins, from the first row and column on.

        Args:
            sample_id: Name of the sample.
            patches: Their size.

        Raises:
            DataError: If a file is missing, damaged, or not what it should be, the files are not of one run, or no square
                has enough tissue.
        """
        patches = patches or PatchOptions()
        size, folder = self._bins()
        side, stride = self._squares(size, patches)
        positions = find_positions(folder / "spatial")
        matrix = open_matrix(find_matrix(folder, None))
        state, placement, names = _survey(positions)
        um_per_px = _um_per_px(folder, positions, placement, float(size))
        grid = SquareGrid(num_rows=state.shape[0], num_cols=state.shape[1], side=side, stride=stride)
        fraction = grid.fraction(state == _IN_TISSUE)
        # a square without tissue is none, whatever fraction is asked for
        wanted = (fraction >= self.min_tissue) & (fraction > 0)
        if not wanted.any():
            raise DataError(
                f"{positions}: no square of {patches.side_um:g} µm has {self.min_tissue:.0%} of its bins in tissue (the fullest "
                f"has {fraction.max():.1%}); lower `min_tissue`"
            )
        number_of = np.full(grid.shape, -1, dtype=np.int32)
        number_of[wanted] = np.arange(wanted.sum())
        sums = sum_bins(
            matrix.chunks(),
            _placer(matrix, positions, state, names),
            state == _IN_TISSUE,
            grid,
            number_of,
            matrix.features.gene_of >= 0,
        )
        if sums.num_repeated:
            raise DataError(
                f"{matrix.path}: {sums.num_repeated} barcodes occur more than once; give the matrix of one sample"
            )
        first_rows, first_cols = (place * stride for place in np.nonzero(wanted))
        middle = (side - 1) / 2
        _warn_of_tilt(positions, placement)
        return SpotSample(
            sample_id=sample_id,
            barcodes=tuple(
                f"square_{patches.side_um:g}um_{row:05d}_{col:05d}"
                for row, col in zip(first_rows.tolist(), first_cols.tolist(), strict=True)
            ),
            genes=matrix.features.genes,
            counts=matrix.features.to_genes(sums.values),
            spatial=placement(middle + first_rows.astype(np.float64), middle + first_cols.astype(np.float64)),
            um_per_px=um_per_px,
            spot_shape="square",
            spot_size_um=patches.side_um,
            gene_ids=matrix.features.gene_ids,
            columns={
                "array_row": first_rows,
                "array_col": first_cols,
                "fraction_in_tissue": fraction[wanted],
            },
            image=FULL_IMAGE,
            image_size_px=stated_image_size(positions.parent),
            files=self.files,
            notes={
                "platform": "Visium HD",
                "bins": folder.name,
                "matrix": matrix.path.name,
                "bin_size_um": size,
                "bins_along_side": side,
                "stride_in_bins": stride,
                "um_per_px": um_per_px,
                "rotation_degrees": placement.rotation_degrees,
                "num_bins": int((state != _UNSEEN).sum()),
                "num_bins_in_tissue": int((state == _IN_TISSUE).sum()),
                "num_counts_of_genes": sums.num_counts,
                "num_counts_outside_tissue": sums.num_outside_tissue,
                "num_counts_in_no_square": sums.num_in_no_square,
                **matrix.features.notes,
            },
        )


def _survey(path: Path) -> tuple[NDArray[np.uint8], Placement, BinNames | None]:
    """Reads the table of positions once, some rows at a time.

    Returns:
        State of each bin, (rows, columns): unseen, outside, or in tissue; where bins lie; and how their names spell row
        and column, None if they do not.
    """
    state = np.zeros((0, 0), dtype=np.uint8)
    fit = PlacementFit()
    names: BinNames | None = None
    are_spelled, num_bins = True, 0
    for part in iterate_positions(path):
        state = _grown(state, int(part.array_row.max()) + 1, int(part.array_col.max()) + 1)
        state[part.array_row, part.array_col] = np.where(part.in_tissue, _IN_TISSUE, _OUTSIDE)
        fit.add(part.array_row, part.array_col, part.spatial)
        num_bins += len(part)
        names = names or BinNames.of(bytes(part.barcodes[0]))
        are_spelled = are_spelled and names is not None and _agree(names, part)
    if np.count_nonzero(state) < num_bins:
        raise DataError(f"{path}: two bins have the same row and column; keep one of them")
    placement = fit.solve()
    if placement is None:
        raise DataError(f"{path}: all bins are in one row or column; give the whole table")
    check_right_angles(path, placement)
    return state, placement, names if are_spelled else None


def _agree(names: BinNames, part: Positions) -> bool:
    places = names.places(part.barcodes)
    return places is not None and all(
        np.array_equal(found, stated)
        for found, stated in zip(places, (part.array_row, part.array_col), strict=True)
    )


def _grown(state: NDArray[np.uint8], num_rows: int, num_cols: int) -> NDArray[np.uint8]:
    if num_rows <= state.shape[0] and num_cols <= state.shape[1]:
        return state
    grown = np.zeros((max(num_rows, state.shape[0]), max(num_cols, state.shape[1])), dtype=np.uint8)
    grown[: state.shape[0], : state.shape[1]] = state
    return grown


def _placer(matrix: TenXMatrix, path: Path, state: NDArray[np.uint8], names: BinNames | None) -> Place:
    """Makes what finds row and column of barcodes: off their spelling if it agrees with the table, or else by the table."""

    def by_spelling(barcodes: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        places = None if names is None else names.places(barcodes)
        if places is None:
            return by_table()(barcodes)
        rows, cols = places
        known = (rows < state.shape[0]) & (cols < state.shape[1])
        known[known] = state[rows[known], cols[known]] != _UNSEEN
        if not known.all():
            return by_table()(barcodes)
        return rows, cols

    table: list[Place] = []

    def by_table() -> Place:
        if not table:
            table.append(_table_placer(matrix, path))
        return table[0]

    return by_spelling


def _table_placer(matrix: TenXMatrix, path: Path) -> Place:
    parts = list(iterate_positions(path))
    barcodes = np.concatenate([part.barcodes for part in parts])
    rows = np.concatenate([part.array_row for part in parts])
    cols = np.concatenate([part.array_col for part in parts])
    order = np.argsort(barcodes)
    barcodes = barcodes[order]

    def place(wanted: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        index = np.minimum(np.searchsorted(barcodes, wanted), len(barcodes) - 1)
        if (barcodes[index] != wanted).any():
            matrix.check_barcodes(wanted.tolist(), set(barcodes.tolist()), path)
        found = order[index]
        return rows[found], cols[found]

    return place


def _um_per_px(folder: Path, positions: Path, placement: Placement, bin_um: float) -> float:
    """Derives the size of a px from the bins, and compares it with what Space Ranger states."""
    um_per_px = um_per_px_of_steps(
        positions, [placement.per_row, placement.per_col], bin_um, "neighbouring bins"
    )
    if not placement.rms_px * um_per_px <= _FARTHEST_UM:
        raise DataError(
            f"{positions}: bins lie {placement.rms_px * um_per_px:.3g} µm from their places in the grid (root mean square); check "
            "the table"
        )
    file = folder / "spatial" / "scalefactors_json.json"
    if not file.is_file():
        return um_per_px
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        stated = {
            name: float(content[name]) for name in ("bin_size_um", "microns_per_pixel") if name in content
        }
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{file}: cannot be read as Space Ranger's scale factors ({error}); copy it again"
        ) from error
    for name, value in (("bin_size_um", bin_um), ("microns_per_pixel", um_per_px)):
        if name in stated and not abs(stated[name] / value - 1) <= LARGEST_DISAGREEMENT:
            raise DataError(
                f"{file}: states {name} {stated[name]:.4g}, and by {positions.name} and the folder's name it is {value:.4g}; give the "
                "files of one run"
            )
    return um_per_px


def _warn_of_tilt(path: Path, placement: Placement) -> None:
    tilt = abs((placement.rotation_degrees + 45) % 90 - 45)
    if tilt > _LARGEST_TILT_DEGREES:
        warnings.warn(
            f"{path}: the bins are turned by {tilt:.0f} degrees against the image, so that the squares of bins and the patches, "
            "which follow the image, do not cover quite the same tissue",
            stacklevel=3,
        )
