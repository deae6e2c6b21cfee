"""Spots of one piece of tissue, whatever measured them: counts, places in its slide image, and where they come from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tyro.conf import arg

from ..runtime.errors import DataError, ParameterError
from ..runtime.names import unique_positions
from .counts import not_counts

_SAMPLE_ID = re.compile(r"\w[\w.+-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class PatchOptions:
    """Patches that are cut around spots, one for each.

    Attributes:
        patch_size_px: Side of the square patches in px at the resolution below.
        resolution_um_per_px: Resolution of the patches in µm/px.

    Raises:
        ParameterError: If a value is outside its range.
    """

    patch_size_px: Annotated[int, arg(name="patch-size", metavar="PX")] = 224
    resolution_um_per_px: Annotated[float, arg(name="resolution", metavar="UM_PER_PX")] = 0.5

    def __post_init__(self) -> None:
        if self.patch_size_px < 1:
            raise ParameterError(f"`patch_size_px` must be at least 1, not {self.patch_size_px}")
        if not 0 < self.resolution_um_per_px < math.inf:
            raise ParameterError(
                f"`resolution_um_per_px` must be finite and above 0, not {self.resolution_um_per_px}"
            )

    @property
    def side_um(self) -> float:
        """Side of a patch in µm."""
        return self.patch_size_px * self.resolution_um_per_px


@dataclass(frozen=True, eq=False, kw_only=True)
class SpotSample:
    """Spots of one sample with their raw counts and their places in the slide image.

    Attributes:
        sample_id: Its name, which files are called by.
        barcodes: Names of the spots.
        genes: Gene symbols.
        counts: Raw counts, (spots, genes), SciPy CSR.
        spatial: Centres in level-0 px of the slide image, (spots, 2) float64 as x, y.
        um_per_px: Size of a level-0 px of that image in µm, derived from what measured the spots; None takes what the
            image states.
        um_per_px_from: What that was derived from, in words, for messages.
        spot_shape: Shape of what a spot measured.
        spot_size_um: Its diameter, or the side of its square, in µm; None where it is unknown.
        gene_ids: Identifier of each gene, such as Ensembl's; empty where there are none.
        columns: More about the spots, such as ``array_row``: name → one value for each.
        image: Which image the places belong to, in words, for messages.
        image_size_px: About how large that image is, width and height; None where that is unknown.
        files: What was read.
        notes: Where the sample comes from and what was decided, as JSON holds it.

    Raises:
        DataError: If names are not unique, lengths do not fit, values are not counts, or a place is not finite.
    """

    sample_id: str
    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    counts: Any
    spatial: NDArray[np.float64]
    um_per_px: float | None = None
    um_per_px_from: str = "the distances of its spots"
    spot_shape: Literal["circle", "square"] = "circle"
    spot_size_um: float | None = None
    gene_ids: tuple[str, ...] = ()
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    image: str = "the image that the places are of, at full resolution"
    image_size_px: tuple[float, float] | None = None
    files: tuple[Path, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sample_id(self.sample_id)
        where = f"sample '{self.sample_id}'"
        shape = (len(self.barcodes), len(self.genes))
        if 0 in shape:
            raise DataError(f"{where}: {shape[0]} spots and {shape[1]} genes; a sample has both")
        if tuple(self.counts.shape) != shape:
            raise DataError(
                f"{where}: counts have the shape {tuple(self.counts.shape)} for {shape[0]} spots and {shape[1]} genes; "
                "give spots × genes"
            )
        unique_positions(where, "barcode", self.barcodes, "name each spot once")
        unique_positions(where, "gene", self.genes, "add the counts of equal genes together")
        lengths = {"gene_ids": (len(self.gene_ids) or shape[1], shape[1])}
        lengths |= {name: (len(values), shape[0]) for name, values in self.columns.items()}
        for name, (found, wanted) in lengths.items():
            if found != wanted:
                raise DataError(f"{where}: {name} has {found} values instead of {wanted}; give one for each")
        if self.spatial.shape != (shape[0], 2) or not np.isfinite(self.spatial).all():
            raise DataError(f"{where}: places must be finite x and y for each of the {shape[0]} spots")
        if self.um_per_px is not None and not 0 < self.um_per_px < math.inf:
            raise DataError(f"{where}: `um_per_px` must be finite and above 0, not {self.um_per_px}")
        if not_counts(self.counts).any():
            raise DataError(f"{where}: counts must be whole numbers from 0 on; give raw counts")


class SpotSource(Protocol):
    """What knows where a sample's spots are kept: a dataclass whose fields are the options of reading them.

    ``prepare_sample`` takes it rather than a ``SpotSample``, so that a sample that is finished is not read again.
    """

    @property
    def files(self) -> Sequence[Path]:
        """Files that will be read; found, checked for existence, and not yet opened."""

    def read(self, sample_id: str, patches: PatchOptions) -> SpotSample:
        """Reads the sample; pseudo-spots have the size of the patches."""


def check_sample_id(sample_id: str) -> str:
    """Returns a name that files may be called by; raises ParameterError for any other."""
    if not _SAMPLE_ID.fullmatch(sample_id):
        raise ParameterError(
            f"`sample_id` is {sample_id!r}; take letters, digits and . _ + - (at most 100, the first of them a letter, a "
            "digit or _), because files are called by it"
        )
    return sample_id
