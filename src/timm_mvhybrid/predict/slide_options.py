"""How slides are predicted: cut, embedded and shown; options that are the command's flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ..data import Slide, SlideSource, TilingOptions
from ..embed.model_input import num_available_workers
from ..runtime.errors import DataError, ParameterError
from .prediction import EncoderRecord

LARGEST_ENLARGEMENT = 1.02
"""How much coarser than the predictor's patches a slide may be, unless that is asked for."""


@dataclass(frozen=True, kw_only=True)
class SlideOptions:
    """How slides are cut, embedded and shown.

    Attributes:
        stride_px: Distance of neighbouring patches in px at the predictor's resolution, at most its patch size; the patch
            size by default, so that patches do not overlap. Each patch keeps its own prediction, nothing is averaged.
        min_tissue: Smallest fraction of tissue (0 to 1) that a patch must hold.
        slide_resolution_um_per_px: Resolution of the slides' largest level in µm/px, for slides that state none or a wrong
            one.
        enlarge: Accept slides that are more than 2 % coarser than the predictor's patches; theirs are enlarged.
        level: Coverage (0 to 1) that intervals aim at; the predictor's by default.
        show_genes: Genes of page and GeoJSON; the 50 with the largest correlation in left-out studies by default.
        geojson: Write GeoJSON for QuPath, too.
        spatialdata: Write a SpatialData zarr, too; needs the extra spatialdata.
        batch_size: Patches per batch.
        device: auto (CUDA if there is any, otherwise CPU), cpu, cuda, cuda:1, mps.
        num_workers: Processes that read patches; 0 reads in the main process, auto takes one a core up to 8.
        cache: Where embeddings are kept; timm_mvhybrid/embeddings in the user's cache folder by default.
    """

    stride_px: Annotated[int | None, arg(name="stride", metavar="PX")] = None
    min_tissue: Annotated[float, arg(metavar="FRACTION")] = 0.5
    slide_resolution_um_per_px: Annotated[float | None, arg(name="slide-resolution", metavar="UM_PER_PX")] = (
        None
    )
    enlarge: bool = False
    level: Annotated[float | None, arg(metavar="FRACTION")] = None
    show_genes: Annotated[tuple[str, ...], arg(metavar="GENE")] = ()
    geojson: bool = False
    spatialdata: bool = False
    batch_size: Annotated[int, arg(metavar="N")] = 64
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    num_workers: Annotated[Literal["auto"] | int, arg(metavar="auto|N")] = "auto"
    cache: Annotated[Path | None, arg(metavar="DIR")] = None

    def __post_init__(self) -> None:
        if self.level is not None and not 0 < self.level < 1:
            raise ParameterError(f"`level` must lie between 0 and 1, not {self.level}")

    @property
    def num_reading(self) -> int:
        """Processes that read patches."""
        return num_available_workers() if self.num_workers == "auto" else self.num_workers

    def results(self) -> dict[str, Any]:
        """Lists what the content of the outputs depends on."""
        names = ("stride_px", "min_tissue", "slide_resolution_um_per_px", "enlarge", "level", "show_genes")
        found = {name: getattr(self, name) for name in names}
        return {**found, "show_genes": list(self.show_genes)}

    def tiling(self, encoder: EncoderRecord) -> TilingOptions:
        """Cuts at the size and resolution of the patches that a predictor was fitted on.

        Raises:
            ParameterError: The stride is not from 1 px to the patch size.
            DataError: Another value is outside its range.
        """
        side = int(encoder.patch_size_px or 0)
        stride = side if self.stride_px is None else self.stride_px
        if not 1 <= stride <= side:
            raise ParameterError(
                f"`stride_px` is {stride} px; it must be from 1 to the predictor's patch size of {side} px"
            )
        return TilingOptions(
            resolution_um_per_px=float(encoder.resolution_um_per_px or 0),
            patch_size_px=side,
            overlap_px=side - stride,
            min_tissue=self.min_tissue,
            slide_resolution_um_per_px=self.slide_resolution_um_per_px,
        )


def tissue_patches(slide: Path, tiling: TilingOptions, *, enlarge: bool) -> SlideSource:
    """Cuts the tissue of a slide, see ``SlideSource``.

    A slide within 1 % of the wanted resolution is read as it is, a finer one is resampled.

    Raises:
        DataError: As ``SlideSource``; or the slide is so much coarser that its patches would have to be enlarged.
    """
    native = Slide(slide, tiling.slide_resolution_um_per_px).resolution_um_per_px
    wanted = tiling.resolution_um_per_px
    if native is not None and native > LARGEST_ENLARGEMENT * wanted and not enlarge:
        raise DataError(
            f"{slide}: the slide has {native:.4g} µm/px, {native / wanted - 1:.0%} coarser than the {wanted:g} µm/px that the "
            "predictor was fitted at, and enlarging adds no detail; give a finer scan, or accept it with `enlarge=True`"
        )
    return SlideSource(slide, tiling)
