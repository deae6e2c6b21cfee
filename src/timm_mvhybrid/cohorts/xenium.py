"""Xenium's output folder and an H&E image with its alignment → pseudo-spots, or transcripts placed on the image."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.plain_image import open_slide
from ..data.slide_source import level0_scale
from ..runtime.errors import DataError, ParameterError
from .image_alignment import ImageAlignment, read_alignment
from .pseudo_spots import SquareCounts, SquareGrid
from .spot_sample import PatchOptions, SpotSample
from .token_grid import MIN_QV
from .transcripts import UM_COLUMNS, TranscriptBatch, TranscriptTable, renumbered

EXPERIMENT_NAME = "experiment.xenium"
TRANSCRIPTS_NAME = "transcripts.parquet"

_COARSEST_UM_PER_PX = 5.0
"""Of the morphology image; Xenium's has 0.2125."""


@dataclass(frozen=True, kw_only=True)
class XeniumSource:
    """Where the transcripts of a sample are, and how they become pseudo-spots.

    Attributes:
        folder: Xenium's output, with ``experiment.xenium`` and ``transcripts.parquet``.
        slide: The H&E image.
        alignment: The 3 × 3 matrix that Xenium Explorer exports for this image, see ``image_alignment``.
        aligned: Whether the image has the pixels of the morphology image, and so needs no matrix.
        stride_px: From one pseudo-spot to the next in px of the patches; None takes their side: no overlap, no gap.
        min_qv: Lowest quality of a transcript that counts.
        min_transcripts: Fewest transcripts of a pseudo-spot: stray ones lie on the glass, too.

    Raises:
        ParameterError: If a value is outside its range.
        DataError: If neither or both of ``alignment`` and ``aligned`` are given, or a file is missing.
    """

    folder: Path
    slide: Path
    alignment: Path | None = None
    aligned: bool = False
    stride_px: int | None = None
    min_qv: float = MIN_QV
    min_transcripts: int = 10

    def __post_init__(self) -> None:
        for name, least in (("stride_px", 1), ("min_transcripts", 1), ("min_qv", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ParameterError(f"`{name}` is {value}; give at least {least}")
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder; give the folder that Xenium wrote, unpacked")
        for path, what in (
            (self.folder / EXPERIMENT_NAME, "states the pixel size"),
            (self.folder / TRANSCRIPTS_NAME, "holds the transcripts"),
        ):
            if not path.is_file():
                raise DataError(
                    f"{path}: missing, which {what}; give the whole output folder of Xenium Onboard Analysis"
                )
        if self.aligned and self.alignment is not None:
            raise DataError(f"{self.alignment}: `aligned` says that the image needs no matrix; give one of both")
        if not self.aligned and self.alignment is None:
            beside = sorted(self.folder.glob("*imagealignment.csv"))
            raise DataError(
                f"{self.slide}: where it lies on the morphology image of {self.folder} is unknown; give the matrix that "
                f"Xenium Explorer exports by `alignment`{f' (is it {beside[0]}?)' if beside else ''}, or `aligned=True` if "
                "the image has the very pixels of the morphology image"
            )

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that are read."""
        names = (self.folder / EXPERIMENT_NAME, self.folder / TRANSCRIPTS_NAME, self.alignment)
        return tuple(path for path in names if path is not None)

    def read(self, sample_id: str, patches: PatchOptions) -> SpotSample:
        """Counts transcripts in squares of the size of a patch, from the image's top left corner on.

        Returns:
            Squares that hold enough, in rows. Where they do not overlap, the sum of all counts and of what ``notes`` says
            was left out for its place is the number of transcripts that count.

        Raises:
            DataError: If a file cannot be used, all transcripts lie outside of the image, or no square holds enough.
        """
        placement = self.placement()
        scale = level0_scale(patches.resolution_um_per_px, placement.um_per_px)
        stride_px = self.stride_px or patches.patch_size_px
        grid = SquareGrid.over(
            open_slide(self.slide).dimensions, patches.patch_size_px * scale, stride_px * scale
        )
        counted, table = SquareCounts(grid), self.table()
        for batch in self.placed(table, placement):
            counted.add(batch.x, batch.y, batch.gene)
        genes = tuple(sorted(table.genes))
        squares, counts = counted.table(len(genes))
        counts = counts[:, np.argsort(renumbered(table.genes, genes))]
        totals = np.asarray(counts.sum(axis=1)).ravel()
        kept = totals >= self.min_transcripts
        if not kept.any():
            raise DataError(
                f"{self.folder / TRANSCRIPTS_NAME}: the fullest square holds {int(totals.max(initial=0)):,} transcripts; lower "
                f"`min_transcripts`, which is {self.min_transcripts}"
            )
        left_out = {
            **dataclasses.asdict(table.left_out),
            "num_in_no_square": counted.num_outside,
            "num_in_sparse_squares": int(totals[~kept].sum()),
        }
        return SpotSample(
            sample_id=sample_id,
            barcodes=grid.names(squares[kept]),
            genes=genes,
            counts=counts[kept],
            spatial=grid.centres(squares[kept]),
            um_per_px=placement.um_per_px,
            um_per_px_from=f"{self.alignment or 'the pixels of the morphology image'} and the {placement.morphology_um_per_px:g} "
            f"µm/px of {EXPERIMENT_NAME}",
            spot_shape="square",
            spot_size_um=grid.side_px * placement.um_per_px,
            image=f"the image that {self.alignment or 'the morphology image'} is of, at full resolution",
            files=self.files,
            notes={
                "platform": "Xenium",
                "alignment": None if self.alignment is None else self.alignment.name,
                "morphology_um_per_px": placement.morphology_um_per_px,
                "um_per_px_range": list(placement.sides_um),
                "stride_px": stride_px,
                "min_qv": self.min_qv,
                "min_transcripts": self.min_transcripts,
                "num_transcripts": table.num_kept,
                "left_out": left_out,
            },
        )

    def placement(self) -> ImageAlignment:
        """Reads where the image lies.

        Raises:
            DataError: If the size of a px or the matrix cannot be read or used.
        """
        return ImageAlignment(
            matrix=np.eye(3) if self.alignment is None else read_alignment(self.alignment),
            morphology_um_per_px=read_pixel_size(self.folder / EXPERIMENT_NAME),
        )

    def table(self) -> TranscriptTable:
        """Opens the table of transcripts, in µm of the morphology image."""
        return TranscriptTable(self.folder / TRANSCRIPTS_NAME, columns=UM_COLUMNS, min_qv=self.min_qv)

    def placed(self, table: TranscriptTable, placement: ImageAlignment) -> Iterator[TranscriptBatch]:
        """Yields the transcripts that count, with their places in level-0 px of the image.

        Raises:
            DataError: At the end, if all of them lie outside of the image, or none counts.
        """
        width, height = open_slide(self.slide).dimensions
        extents = []
        num_inside = num_inverted = 0

        def count_inside(x: NDArray[np.float64], y: NDArray[np.float64]) -> int:
            return int(((x >= 0) & (x < width) & (y >= 0) & (y < height)).sum())

        for batch in table:
            x, y = placement.from_um(batch.x, batch.y)
            num_inside += count_inside(x, y)
            # where they would lie if the matrix led from the morphology image to the image
            num_inverted += count_inside(*placement.to_morphology(*placement.to_morphology(x, y)))
            if len(x):
                extents.append((x.min(), y.min(), x.max(), y.max()))
            yield dataclasses.replace(batch, x=x, y=y)
        if not num_inside:
            found = np.array(extents)
            (left, top), (right, bottom) = found[:, :2].min(axis=0), found[:, 2:].max(axis=0)
            remedy = "give the matrix of this very image, at its full resolution"
            if 2 * num_inverted > table.num_kept:
                remedy = (
                    f"its inverse would place {num_inverted / table.num_kept:.0%} of them inside: give the matrix from the image to "
                    "the morphology image"
                )
            raise DataError(
                f"{self.alignment or self.folder / EXPERIMENT_NAME}: places all {table.num_kept:,} transcripts (x {left:.0f} to "
                f"{right:.0f}, y {top:.0f} to {bottom:.0f} px) outside of {self.slide} ({width} × {height} px); {remedy}"
            )


def read_pixel_size(file: str | Path) -> float:
    """Reads the size of a px of the morphology image, µm, from ``experiment.xenium``.

    Raises:
        DataError: If the file is no JSON, lacks ``pixel_size``, or states what no microscope has.
    """
    file = Path(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read as JSON ({getattr(error, 'strerror', None) or error}); copy it again"
        ) from error
    facts = content if isinstance(content, dict) else {}
    value = facts.get("pixel_size")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _COARSEST_UM_PER_PX:
        version = facts.get("analysis_sw_version")
        raise DataError(
            f"{file}: 'pixel_size' is {'missing' if value is None else repr(value)}"
            f"{f' (written by {version})' if version else ''}; it must be µm in a px of the morphology image, such as 0.2125"
        )
    return float(value)
