"""Xenium Explorer's alignment of an image (CSV, 3 × 3) ↔ places in the image and on the morphology image.

The matrix maps px of the aligned image to px of the morphology (DAPI) image at full resolution, both as columns
:math:`(x, y, 1)^T`. So a transcript at µm :math:`u` lies on the image at :math:`M^{-1} (u / p)`, where :math:`p` is
the size of a px of the morphology image, which ``experiment.xenium`` states as ``pixel_size``.

Source: 10x Genomics, "How can I convert coordinates between H&E image and Xenium data?"
(https://kb.10xgenomics.com/hc/en-us/articles/35386990499853), whose numbers a test holds. spatialdata-io's
``xenium_aligned_image`` gives the image the matrix as its transformation to px of the morphology image, and HEST's reader
of Xenium inverts it to place transcripts: the same direction.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError

# what keypoints of an alignment that was exported together with its matrix begin with
_KEYPOINT_COLUMNS = ("fixedx", "alignmentx")
_LAST_ROW = (0.0, 0.0, 1.0)
_ROUNDING = 1e-9
"""Of the last row: over 100,000 px it moves a place by a ten-thousandth of a px."""
_SMALLEST_SCALE = 1e-6
"""Of the matrix, below which it maps the image to a point or a line: no two images differ a million times in scale."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageAlignment:
    """Where an image lies on the morphology image.

    Attributes:
        matrix: Maps px of the image to px of the morphology image, (3, 3) float64, last row 0, 0, 1.
        morphology_um_per_px: Size of a px of the morphology image in µm.
    """

    matrix: NDArray[np.float64]
    morphology_um_per_px: float

    @property
    def um_per_px(self) -> float:
        """Size of a px of the image in µm: the side of a square of its area."""
        return self.morphology_um_per_px * math.sqrt(abs(float(np.linalg.det(self.matrix[:2, :2]))))

    @property
    def sides_um(self) -> tuple[float, float]:
        """Least and greatest length in µm that a step of one px of the image has in any direction."""
        greatest, least = np.linalg.svd(self.matrix[:2, :2], compute_uv=False).tolist()
        return least * self.morphology_um_per_px, greatest * self.morphology_um_per_px

    def from_um(
        self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places µm of the morphology image on the image.

        Args:
            x_um: Columns, (places,).
            y_um: Rows, (places,).

        Returns:
            Columns and rows in px of the image.
        """
        (a, b, left), (c, d, top) = self.matrix[:2]
        determinant = a * d - b * c
        x, y = x_um / self.morphology_um_per_px - left, y_um / self.morphology_um_per_px - top
        return (d * x - b * y) / determinant, (a * y - c * x) / determinant

    def to_morphology(
        self, x_px: NDArray[np.float64], y_px: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places px of the image on the morphology image, in px; the other direction."""
        (a, b, left), (c, d, top) = self.matrix[:2]
        return a * x_px + b * y_px + left, c * x_px + d * y_px + top


def read_alignment(file: str | Path) -> NDArray[np.float64]:
    """Reads the matrix that Xenium Explorer exports, three lines of three numbers.

    Returns:
        The matrix, (3, 3), last row 0, 0, 1.

    Raises:
        DataError: If the file cannot be read, is no such matrix, cannot be inverted or is perspective.
    """
    file = Path(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream, strict=True) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file}: cannot be read as a CSV ({getattr(error, 'strerror', None) or error}); give the matrix.csv or "
            "*_imagealignment.csv that Xenium Explorer exports"
        ) from error
    if rows and rows[0][0].strip().lower() in _KEYPOINT_COLUMNS:
        raise DataError(
            f"{file}: holds the keypoints of an alignment; give its matrix, which Xenium Explorer exports beside them"
        )
    try:
        matrix = np.array(rows, dtype=np.float64)
    except ValueError as error:  # words, or rows of different lengths
        raise DataError(f"{file}: must hold three lines of three numbers ({error})") from error
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        found = " × ".join(map(str, matrix.shape)) if matrix.shape != (3, 3) else "NaN or infinite values"
        raise DataError(f"{file}: must hold three lines of three finite numbers, not {found}")
    if not np.allclose(matrix[2], _LAST_ROW, rtol=0, atol=_ROUNDING):
        last = ", ".join(f"{value:g}" for value in matrix[2])
        transposed = np.allclose(matrix[:, 2], _LAST_ROW, rtol=0, atol=_ROUNDING)
        raise DataError(
            f"{file}: the last line is {last}, not 0, 0, 1, which no shift, rotation or scaling has; "
            + (
                "the matrix is transposed: write it with the shift in its last column"
                if transposed
                else "export it again"
            )
        )
    if not np.linalg.svd(matrix[:2, :2], compute_uv=False)[-1] > _SMALLEST_SCALE:
        raise DataError(
            f"{file}: the matrix is singular, it maps the image to a line or a point; export it again"
        )
    matrix[2] = _LAST_ROW
    return matrix
