"""Coordinate h5: CLAM's or TRIDENT's ``coords`` + the slide → patches in file order."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.errors import DataError, SlideChoiceError
from .coordinate_reading import is_of_a_tool, patch_reading
from .h5_file import H5File, attributes, find_dataset, read_coords
from .slide import SLIDE_SUFFIXES, Slide
from .slide_patches import SlidePatches

Edge = Literal["auto", "black", "white", "skip"]
"""How patches that extend over the slide's edge are filled, see ``CoordinateH5Source``."""
# of a pixel; corners divided by a downsample carry rounding
_EDGE_TOLERANCE_PX = 1e-6


def find_slide(path: Path, name: str | None, folder: Path | None = None) -> Path:
    """Looks for the slide that a coordinate file belongs to.

    Args:
        path: The coordinate file; TRIDENT's ending ``_patches`` is not part of the slide's name.
        name: The slide's name by the file's attribute ``name``, or None.
        folder: Where to look; None looks beside the file.

    Raises:
        SlideChoiceError: If there is none, or more than one.
    """
    place = "beside it" if folder is None else f"in {folder}"
    stems = {path.stem, path.stem.removesuffix("_patches")} | ({name} if name else set())
    found = sorted(
        file
        for file in (folder or path.parent).iterdir()
        if file.suffix.lower() in SLIDE_SUFFIXES and (file.stem in stems or file.name in stems)
    )
    if len(found) == 1:
        return found[0]
    if found:
        raise SlideChoiceError(f"{path}: several slides fit ({', '.join(file.name for file in found)})")
    raise SlideChoiceError(
        f"{path}: the file holds coordinates only, and no slide named {' or '.join(sorted(stems))} lies {place}"
    )


class CoordinateH5Source(SlidePatches):
    """Patches of a slide at coordinates that another tool chose, in that tool's pixels.

    TRIDENT states ``patch_size`` (pixels of the patch) and two magnifications, CLAM ``patch_size`` (pixels of the
    level) and ``patch_level``; both read whole pixels of a level, as this does. A file that states
    ``patch_size_level0`` alone is read as this package cuts slides. The attributes may be on ``coords`` or on the file.

    Beyond the slide's edge TRIDENT and CLAM see black; glass is white. ``edge`` says what such patches get: ``black``
    or ``white`` there, or ``skip``, which leaves them out. ``auto`` is black for files that TRIDENT or CLAM wrote
    (which carry ``savetodir`` or ``save_path``), so that features equal theirs, and white for others.

    Args:
        path: The h5 file with ``coords``, (N, 2) top-left corners in level-0 pixels.
        slide: The slide, or its folder; None looks for it beside the file.
        slide_resolution_um_per_px: Resolution of the slide's level 0 in µm per pixel; None takes the slide's own.
        edge: How patches that extend over the edge are filled.

    Attributes:
        edge: ``black``, ``white`` or ``skip``, after ``auto`` is resolved.
        num_over_edge: Patches that extend over the edge, including those left out.

    Raises:
        SlideChoiceError: If the slide is missing, or patches lie outside it.
        DataError: If the file is not such a file.
    """

    def __init__(
        self,
        path: str | Path,
        slide: str | Path | None = None,
        slide_resolution_um_per_px: float | None = None,
        edge: Edge = "auto",
    ) -> None:
        if edge not in get_args(Edge):
            raise DataError(f"unknown edge '{edge}'; choose from {', '.join(get_args(Edge))}")
        self.path = Path(path)
        file = H5File(path)
        dataset = find_dataset(file, "coords")
        if dataset is None:
            raise DataError(f"{self.path}: no dataset 'coords'")
        values = attributes(file, dataset)
        self.coords = read_coords(file, dataset)
        file.close()
        if len(self.coords) == 0:
            raise DataError(f"{self.path}: dataset 'coords' is empty")
        name = values.get("name", values.get("wsi_name"))
        if slide is None or Path(slide).is_dir():
            folder = None if slide is None else Path(slide)
            slide = find_slide(self.path, name if isinstance(name, str) else None, folder)
        self.slide = Slide(slide, slide_resolution_um_per_px)
        self.slide.close()
        self.reading = patch_reading(file, values, self.slide.path, self.slide.level_downsamples)
        self.patch_size_px = self.reading.size_px
        self.patch_size_level0 = self.reading.size_level0
        self._check_inside()
        if self.slide.states_resolution and self.slide.resolution_um_per_px is None:
            warnings.warn(
                f"{self.slide.path}: {self.slide.resolution_problem}; the output states no resolution, and "
                "--slide-resolution UM_PER_PX settles it",
                stacklevel=2,
            )
        native = self.slide.resolution_um_per_px
        self.resolution_um_per_px = native and native * self.patch_size_level0 / self.patch_size_px
        of_a_tool = is_of_a_tool(values) and self.reading.level is not None
        self.edge = edge if edge != "auto" else "black" if of_a_tool else "white"
        if self.edge == "black" and self.reading.level is None:
            raise DataError(
                f"{self.path}: black beyond the slide's edge is what TRIDENT and CLAM see, and the file has neither the "
                "magnifications of the one nor the level of the other; take --edge white or skip"
            )
        over_edge = self._over_edge()
        self.num_over_edge = int(over_edge.sum())
        if self.edge == "skip":
            if over_edge.all():
                raise DataError(
                    f"{self.path}: all {len(self.coords)} patches extend over the edge of {self.slide.path}, so none is "
                    "left; take --edge auto"
                )
            self.coords = self.coords[~over_edge]

    def _over_edge(self) -> NDArray[np.bool_]:
        """Finds the patches that show pixels outside the slide, (N,)."""
        # by a level's own size, which need not be the slide's divided by its downsample
        level = self.reading.level or 0
        first = self.coords / self.slide.level_downsamples[level]
        last = first + self.reading.size_level0 / self.slide.level_downsamples[level]
        extent = np.array(self.slide.level_dimensions[level])
        beyond = (first < -_EDGE_TOLERANCE_PX) | (last > extent + _EDGE_TOLERANCE_PX)
        return np.asarray(beyond.any(axis=1), dtype=np.bool_)

    def _check_inside(self) -> None:
        # tools let patches extend over any edge; one that lies wholly beyond it means another slide
        beyond = (self.coords + self.patch_size_level0 <= 0) | (
            self.coords >= np.array(self.slide.dimensions)
        )
        outside = beyond.any(axis=1)
        if outside.any():
            index = int(outside.argmax())
            x, y = self.coords[index].tolist()
            width, height = self.slide.dimensions
            raise SlideChoiceError(
                f"{self.path}: {int(outside.sum())} of {len(self.coords)} coordinates lie outside {self.slide.path} "
                f"({width} × {height} px), first patch {index} at x={x}, y={y}, so that is another slide"
            )

    def __getitem__(self, index: int) -> Image.Image:
        """Reads one patch from the slide.

        Args:
            index: From 0 to the number of patches.

        Returns:
            The patch in mode RGB, ``patch_size_px`` on each side.
        """
        if self.reading.level is None:
            return super().__getitem__(index)
        x, y = self.coords[index].tolist()
        size_px = (self.patch_size_px, self.patch_size_px)
        size_level_px = (self.reading.size_level_px, self.reading.size_level_px)
        padding = (0, 0, 0) if self.edge == "black" else (255, 255, 255)
        patch = self.slide.read_level((x, y), self.reading.level, size_level_px, padding=padding)
        # Pillow's own default, as in TRIDENT
        return patch if patch.size == size_px else patch.resize(size_px, Image.Resampling.BICUBIC)
