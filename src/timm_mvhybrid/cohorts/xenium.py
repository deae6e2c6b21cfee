"""Xenium's output folder and an H&E image with its alignment → pseudo-spots, or transcripts placed on the image."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, Suppress, arg

from ..data.plain_image import open_slide
from ..data.slide_source import level0_scale
from ..runtime.errors import DataError, ParameterError
from .image_alignment import ImageAlignment, read_alignment
from .pseudo_spots import PatchGrid, SquareCounts
from .spot_sample import PatchOptions, SpotSample
from .token_grid import MIN_QV
from .transcripts import UM_COLUMNS, TranscriptBatch, TranscriptTable, renumbered

EXPERIMENT_NAME = "experiment.xenium"
TRANSCRIPTS_NAME = "transcripts.parquet"
PANEL_NAME = "gene_panel.json"

_MATRIX_ENDING = "imagealignment.csv"
_COARSEST_UM_PER_PX = 5.0
"""Of the morphology image; Xenium's has 0.2125."""


@dataclass(frozen=True, kw_only=True)
class XeniumFolder:
    """Where a Xenium sample is, see ``SpotSource``, and how its transcripts become pseudo-spots.

    Attributes:
        folder: Output of Xenium Onboard Analysis, with experiment.xenium and transcripts.parquet.
        slide: The H&E image.
        um_per_px: Size of a level-0 px of that image in µm; None derives it from the alignment.
        alignment: Matrix (CSV, 3 × 3) that Xenium Explorer exports for the image; by default the one that is named after it,
            as X_he_imagealignment.csv after X_he_image.ome.tif, or the only ...imagealignment.csv in the folder.
        aligned: The image has the very pixels of Xenium's morphology image, so there is no matrix.
        stride_px: Distance of neighbouring pseudo-spots in px of the patches; by default a patch's side, so that every
            transcript is in one.
        min_qv: Lowest quality (Phred) of a transcript that counts.
        min_transcripts: Fewest transcripts of a pseudo-spot: stray ones lie on the glass, too.

    Raises:
        ParameterError: If a value is outside its range.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    slide: Annotated[Path | None, Suppress] = None
    um_per_px: Annotated[float | None, Suppress] = None
    alignment: Annotated[Path | None, arg(metavar="FILE.csv")] = None
    aligned: bool = False
    stride_px: Annotated[float | None, arg(name="stride", metavar="PX")] = None
    min_qv: Annotated[float, arg(metavar="QV")] = MIN_QV
    min_transcripts: Annotated[int, arg(metavar="N")] = 10

    def __post_init__(self) -> None:
        if self.stride_px is not None and not 0 < self.stride_px < math.inf:
            raise ParameterError(f"`stride_px` must be above 0, not {self.stride_px}")
        if not 0 <= self.min_qv < math.inf:
            raise ParameterError(f"`min_qv` must be at least 0, not {self.min_qv}")
        if self.min_transcripts < 1:
            raise ParameterError(f"`min_transcripts` must be at least 1, not {self.min_transcripts}")

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that are read.

        Raises:
            DataError: If one is missing, or where the image lies is not known for certain.
        """
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder; give the folder that Xenium wrote, unpacked")
        experiment, transcripts = self.folder / EXPERIMENT_NAME, self.folder / TRANSCRIPTS_NAME
        for path, what in ((experiment, "states the pixel size"), (transcripts, "holds the transcripts")):
            if not path.is_file():
                raise DataError(
                    f"{path}: missing, which {what}; give the whole output folder of Xenium Onboard Analysis"
                )
        panel, matrix = self.folder / PANEL_NAME, self.matrix_file
        optional = ([panel] if panel.is_file() else []) + ([] if matrix is None else [matrix])
        return (experiment, transcripts, *optional)

    @property
    def matrix_file(self) -> Path | None:
        """The matrix of the image; None if it is said to need none.

        Raises:
            DataError: If none is given or found, or several are found.
        """
        if self.aligned:
            if self.alignment is not None:
                raise DataError(
                    f"{self.alignment}: `aligned` says that the image needs no matrix; give one of both"
                )
            return None
        if self.alignment is not None:
            return self.alignment
        named, inside = _named_after(self._image), sorted(self.folder.glob(f"*{_MATRIX_ENDING}"))
        for place in (self._image.parent, self.folder):
            if named is not None and (place / named).is_file():
                return place / named
        if len(inside) == 1:
            return inside[0]
        found = f"{self.folder} has {', '.join(file.name for file in inside)}, of which images is not said"
        raise DataError(
            f"{self._image}: where it lies on the morphology image is unknown, because "
            f"{found if inside else f'there is no file ...{_MATRIX_ENDING} in {self.folder}'}; give the matrix that Xenium "
            "Explorer exports by `alignment`, or `aligned=True` if the image has the very pixels of the morphology image"
        )

    @property
    def _image(self) -> Path:
        if self.slide is None:
            raise ParameterError("`slide` is missing; give the H&E image, which says how far squares go")
        return self.slide

    def read(self, sample_id: str, patches: PatchOptions) -> SpotSample:
        """Counts transcripts in squares of the size of a patch, from the image's top left corner on.

        Genes are those of the panel (gene_panel.json, where there is one) and those that have transcripts: a gene that was
        measured and not seen has counts of 0, so that samples of one panel have the same genes.

        Returns:
            Squares that hold enough, in rows. Where they do not overlap, the sum of all counts and of what ``notes`` says
            was left out for its place is the number of transcripts that count.

        Raises:
            DataError: If a file cannot be used, all transcripts lie outside of the image, or no square holds enough.
        """
        placement, matrix = self.placement(), self.matrix_file
        um_per_px = self.um_per_px or placement.um_per_px
        scale = level0_scale(patches.resolution_um_per_px, um_per_px)
        stride_px = patches.patch_size_px if self.stride_px is None else self.stride_px
        grid = PatchGrid.over(
            open_slide(self._image).dimensions, patches.patch_size_px * scale, stride_px * scale
        )
        counted, table = SquareCounts(grid), self.table()
        for batch in self.placed(table, placement):
            counted.add(batch.x, batch.y, batch.gene)
        panel = self.folder / PANEL_NAME
        unseen = sorted(set(read_gene_panel(panel) if panel.is_file() else ()).difference(table.genes))
        numbered = (*table.genes, *unseen)
        genes = tuple(sorted(numbered))
        squares, counts = counted.table(len(genes))
        counts = counts[:, np.argsort(renumbered(numbered, genes))]
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
            um_per_px=um_per_px,
            um_per_px_from=f"{matrix or 'the pixels of the morphology image'} and the {placement.morphology_um_per_px:g} "
            f"µm/px of {EXPERIMENT_NAME}",
            spot_shape="square",
            spot_size_um=grid.side_px * um_per_px,
            image=f"the image that {matrix or 'the morphology image'} is of, at full resolution",
            files=self.files,
            notes={
                "platform": "Xenium",
                "alignment": None if matrix is None else matrix.name,
                "morphology_um_per_px": placement.morphology_um_per_px,
                "aligned_um_per_px": list(placement.sides_um),
                "stride_px": stride_px,
                "min_qv": self.min_qv,
                "min_transcripts": self.min_transcripts,
                "num_transcripts": table.num_kept,
                "num_genes_without_transcript": len(unseen),
                "left_out": left_out,
            },
        )

    def placement(self) -> ImageAlignment:
        """Reads where the image lies.

        Raises:
            DataError: If the size of a px or the matrix cannot be read or used.
        """
        return ImageAlignment(
            matrix=np.eye(3) if self.matrix_file is None else read_alignment(self.matrix_file),
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
        width, height = open_slide(self._image).dimensions
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
        hint = ""
        if 2 * num_inverted > table.num_kept:
            hint = (
                f"; the inverse matrix would place {num_inverted / table.num_kept:.0%} of them inside: give the one from the image "
                "to the morphology image"
            )
        size = f"{self._image} ({width} × {height} px)"
        if not num_inside:
            found = np.array(extents)
            (left, top), (right, bottom) = found[:, :2].min(axis=0), found[:, 2:].max(axis=0)
            raise DataError(
                f"{self.matrix_file or self.folder / EXPERIMENT_NAME}: places all {table.num_kept:,} transcripts (x {left:.0f} to "
                f"{right:.0f}, y {top:.0f} to {bottom:.0f} px) outside of {size}"
                f"{hint or '; give the matrix of this very image, at its full resolution'}"
            )
        if 2 * num_inside < table.num_kept:
            warnings.warn(
                f"{self.matrix_file or self.folder / EXPERIMENT_NAME}: places only {num_inside:,} of {table.num_kept:,} transcripts "
                f"inside of {size}; look at the picture of spots on the tissue{hint}",
                stacklevel=3,
            )


def _named_after(slide: Path) -> str | None:
    """Names the matrix of an image as 10x Genomics does."""
    begin, found, _ = slide.name.rpartition("image.")
    return f"{begin}{_MATRIX_ENDING}" if found else None


def read_gene_panel(file: str | Path) -> list[str]:
    """Reads the names of the genes that a run can find from ``gene_panel.json``; its controls are left out.

    Raises:
        DataError: If the file is no JSON, or lists no genes.
    """
    file = Path(file)
    genes = []
    try:
        for target in _read_json(file)["payload"]["targets"]:
            if target["type"]["descriptor"] == "gene":
                genes.append(str(target["type"]["data"]["name"]))
    except (KeyError, TypeError, IndexError):
        genes = []
    if not genes:
        raise DataError(
            f"{file}: lists no genes (payload, targets, each with type, descriptor 'gene' and a name); copy it again from the "
            "output folder of Xenium Onboard Analysis, or move it away to take the genes that have transcripts"
        )
    return genes


def read_pixel_size(file: str | Path) -> float:
    """Reads the size of a px of the morphology image, µm, from ``experiment.xenium``.

    Raises:
        DataError: If the file is no JSON, lacks ``pixel_size``, or states what no microscope has.
    """
    file = Path(file)
    content = _read_json(file)
    facts = content if isinstance(content, dict) else {}
    value = facts.get("pixel_size")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _COARSEST_UM_PER_PX:
        version = facts.get("analysis_sw_version")
        raise DataError(
            f"{file}: 'pixel_size' is {'missing' if value is None else repr(value)}"
            f"{f' (written by {version})' if version else ''}; it must be µm in a px of the morphology image, such as 0.2125"
        )
    return float(value)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read as JSON ({getattr(error, 'strerror', None) or error}); copy it again"
        ) from error
