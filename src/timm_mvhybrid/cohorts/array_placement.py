"""Rows and columns of an array → places in the image: an affine map, by least squares, and the size of a px that it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from .spot_patches import LARGEST_DISAGREEMENT

_LARGEST_SHEAR = 0.05
"""Cosine between the array's rows and columns in the image, which are at right angles."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Placement:
    """Where the places of an array lie in the image.

    Attributes:
        origin: x, y of row 0, column 0 in px.
        per_row: Step in px, x and y, to the next row.
        per_col: Step in px, x and y, to the next column.
        rms_px: How far measured places lie from it: root of the mean square, in px.
    """

    origin: NDArray[np.float64]
    per_row: NDArray[np.float64]
    per_col: NDArray[np.float64]
    rms_px: float

    def __call__(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> NDArray[np.float64]:
        """Computes places, (N, 2) as x, y, of rows and columns."""
        places: NDArray[np.float64] = (
            self.origin + rows[:, None] * self.per_row + cols[:, None] * self.per_col
        )
        return places

    @property
    def rotation_degrees(self) -> float:
        """Angle from the image's x axis to the array's columns, or to the opposite direction if that is nearer: −90 to 90."""
        angle = float(np.degrees(np.arctan2(self.per_col[1], self.per_col[0])))
        return (angle + 90) % 180 - 90


class PlacementFit:
    """Sums from which a ``Placement`` follows: any number of places, some at a time."""

    def __init__(self) -> None:
        self._shift = np.zeros(5)
        self._sums = np.zeros((5, 5))
        self._number = 0

    def add(self, rows: NDArray[np.int64], cols: NDArray[np.int64], spatial: NDArray[np.float64]) -> None:
        """Adds places, (N, 2) as x, y, of rows and columns."""
        values = np.stack([rows, cols, *spatial.T, np.ones(len(rows))]).astype(np.float64)
        if not self._number:
            # sums of squares about a place amid the data keep the digits that count
            self._shift[:4] = values[:4].mean(axis=1)
        values[:4] -= self._shift[:4, None]
        self._sums += values @ values.T
        self._number += len(rows)

    def solve(self) -> Placement | None:
        """Solves for the placement; None if all places are in one row or column, or on one line."""
        if not self._number:
            return None
        mean = self._sums[4, :4] / self._number
        spread = self._sums[:4, :4] / self._number - np.outer(mean, mean)
        array, both, places = spread[:2, :2], spread[:2, 2:], spread[2:, 2:]
        # one row of spots has a spread of 0 in one direction
        if np.linalg.eigvalsh(array)[0] < 1e-9:
            return None
        steps = np.linalg.solve(array, both)
        centre = self._shift[:4] + mean
        left = float(np.trace(places - steps.T @ both))
        return Placement(
            origin=centre[2:] - centre[:2] @ steps,
            per_row=steps[0],
            per_col=steps[1],
            rms_px=float(np.sqrt(max(left, 0.0))),
        )


def um_per_px_of_steps(path: Path, steps_px: list[NDArray[np.float64]], step_um: float, what: str) -> float:
    """Derives the size of a px from steps in the image that are equally long in the tissue.

    Args:
        path: The table of positions, for messages.
        steps_px: Steps in px, x and y.
        step_um: Their length in µm.
        what: Their name, for messages.

    Returns:
        Size of a px in µm.

    Raises:
        DataError: If steps in one direction give another size than those in others.
    """
    sizes = [step_um / max(float(np.hypot(*step)), 1e-12) for step in steps_px]
    if max(sizes) / min(sizes) - 1 > LARGEST_DISAGREEMENT:
        raise DataError(
            f"{path}: a px is {min(sizes):.4g} µm by {what} in one direction and {max(sizes):.4g} µm in another; check the table, "
            "whose rows and columns may be of another array"
        )
    return step_um / float(np.mean([step_um / size for size in sizes]))


def check_right_angles(path: Path, placement: Placement) -> None:
    """Raises DataError where rows and columns of the array are not at right angles in the image."""
    row, col = placement.per_row, placement.per_col
    cosine = abs(float(row @ col)) / max(float(np.hypot(*row) * np.hypot(*col)), 1e-12)
    if cosine > _LARGEST_SHEAR:
        raise DataError(
            f"{path}: rows and columns of the array meet at {np.degrees(np.arccos(cosine)):.0f} degrees in the image; check the table"
        )
