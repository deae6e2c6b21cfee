"""Coordinate h5: CLAM's or TRIDENT's ``coords`` + the slide → patches in file order, of the pixels that its writer reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.errors import DataError, SlideChoiceError
from .h5_file import H5File, attributes, find_dataset, number, read_coords
from .remote_path import AnyPath, as_path
from .slide import SLIDE_SUFFIXES, Slide, is_slide_folder
from .slide_source import SlidePatches

# TRIDENT takes the first level whose downsample is this close to the target, before it looks for a finer one
_NEAR_DOWNSAMPLE = 0.1
# rounding to whole pixels changes the side of a patch by far less, even that of a small one
_LARGEST_DEVIATION = 0.02
# written into each coordinate file by TRIDENT and by CLAM, and never by hand
_MARKS = ("savetodir", "save_path")


@dataclass(frozen=True, kw_only=True)
class PatchReading:
    """How patches are read from the slide.

    Attributes:
        size_px: Side of a patch in pixels.
        size_level0: Side of what it shows in level-0 pixels.
        level: Level of the slide that whole pixels are read from; None resamples what ``size_level0`` covers.
        size_level_px: Side of what is read in pixels of that level; 0 without one.
    """

    size_px: int
    size_level0: float
    level: int | None = None
    size_level_px: int = 0


def is_of_a_tool(values: Mapping[str, Any]) -> bool:
    """Says by the folder names that they write whether TRIDENT or CLAM wrote a file, not someone else in their layout."""
    return any(name in values for name in _MARKS)


def patch_reading(
    file: H5File, values: Mapping[str, Any], slide: object, level_downsamples: Sequence[float]
) -> PatchReading:
    """Follows the arithmetic of the tool whose attributes a file has.

    With two magnifications it is TRIDENT's, with a level CLAM's; a file that states ``patch_size_level0`` alone is read
    as this package cuts slides.

    Raises:
        DataError: If attributes are missing, contradict each other, or name a level that the slide does not have.
    """
    patch_size = number(file, values, "patch_size")
    if patch_size is None:
        raise DataError(f"{file.path}: dataset 'coords' has no attribute 'patch_size'")
    size_px = round(patch_size)
    stated = number(file, values, "patch_size_level0")
    magnification = number(file, values, "level0_magnification")
    target = number(file, values, "target_magnification")
    if magnification is not None and target is not None:
        exact = patch_size * magnification / target
        # rounded by TRIDENT, to whole pixels
        if stated is not None and abs(stated - exact) > 1:
            raise DataError(
                f"{file.path}: attribute 'patch_size_level0' is {stated:g}, but patches of {patch_size:g} px at "
                f"{target:g} × on a slide of {magnification:g} × cover {exact:g} px; correct the attribute that is wrong"
            )
        return _by_magnifications(file, size_px, magnification, target, level_downsamples)
    if stated is not None:
        return PatchReading(size_px=size_px, size_level0=stated)
    if values.get("patch_level") is None:
        raise DataError(
            f"{file.path}: dataset 'coords' has neither CLAM's attribute 'patch_level' nor TRIDENT's "
            "'patch_size_level0'"
        )
    try:
        level = int(values["patch_level"])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{file.path}: attribute 'patch_level' is not a number: {values['patch_level']!r}; write the level's number"
        ) from error
    if not 0 <= level < len(level_downsamples):
        raise DataError(
            f"{file.path}: attribute 'patch_level' is {level}, but {slide} has the levels 0 to "
            f"{len(level_downsamples) - 1}; is it the slide that the coordinates were made from?"
        )
    size_level_px = round(patch_size * (number(file, values, "custom_downsample") or 1.0))
    return PatchReading(
        size_px=size_px,
        size_level0=size_level_px * level_downsamples[level],
        level=level,
        size_level_px=size_level_px,
    )


def _by_magnifications(
    file: H5File, size_px: int, magnification: float, target: float, level_downsamples: Sequence[float]
) -> PatchReading:
    # via resolutions of 10 µm over the magnification, as TRIDENT does: the quotient rounds a little differently
    downsample = (10 / target) / (10 / magnification)
    size_level0 = round(size_px * downsample)
    near = (n for n, found in enumerate(level_downsamples) if abs(found - downsample) <= _NEAR_DOWNSAMPLE)
    finer = (n for n, found in enumerate(level_downsamples) if found <= downsample)
    level = next(near, max(finer, default=0))
    # the level's downsample without its fraction, so that 1.9995 counts as 1
    size_level_px = max(round(size_level0 / int(level_downsamples[level])), 1)
    covered = size_level_px * level_downsamples[level]
    if abs(covered / size_level0 - 1) > _LARGEST_DEVIATION:
        warnings.warn(
            f"{file.path}: as TRIDENT reads level {level} of the slide, whose downsample is "
            f"{level_downsamples[level]:.4f}, patches show {covered:.0f} px of level 0 and not the {size_level0} px of "
            f"{target:g} ×",
            stacklevel=4,
        )
    return PatchReading(size_px=size_px, size_level0=covered, level=level, size_level_px=size_level_px)


Edge = Literal["auto", "black", "white", "skip"]
"""How patches that extend over the slide's edge are filled, see ``CoordinateH5Source``."""
# of a pixel; corners divided by a downsample carry rounding
_EDGE_TOLERANCE_PX = 1e-6


def find_slide(path: Path, name: str | None, folder: Path | None = None) -> Path:
    """Looks for the slide of a coordinate file in ``folder`` or beside it; raises SlideChoiceError without exactly one.

    Its name is the file's, without TRIDENT's ending ``_patches``, or the one that the file states.
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
        DataError: If the file is not such a file, or ``edge`` is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        slide: str | AnyPath | None = None,
        slide_resolution_um_per_px: float | None = None,
        edge: Edge = "auto",
    ) -> None:
        if edge not in get_args(Edge):
            raise DataError(f"`edge` is '{edge}'; choose from {', '.join(get_args(Edge))}")
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
        place = None if slide is None else as_path(slide)
        if place is None or (isinstance(place, Path) and place.is_dir() and not is_slide_folder(place)):
            place = find_slide(self.path, name if isinstance(name, str) else None, place)
        # the levels that such files name, and that their tools choose from, are OpenSlide's
        self.slide = Slide(place, slide_resolution_um_per_px, as_openslide=True)
        self.slide.close()
        self.reading = patch_reading(file, values, self.slide.path, self.slide.level_downsamples)
        self.patch_size_px = self.reading.size_px
        self.patch_size_level0 = self.reading.size_level0
        self._check_inside()
        if self.slide.states_resolution and self.slide.resolution_um_per_px is None:
            warnings.warn(
                f"{self.slide.path}: {self.slide.resolution_problem}; the output states no resolution, and "
                "`slide_resolution_um_per_px` settles it",
                stacklevel=2,
            )
        native = self.slide.resolution_um_per_px
        self.resolution_um_per_px = native and native * self.patch_size_level0 / self.patch_size_px
        of_a_tool = is_of_a_tool(values) and self.reading.level is not None
        self.edge = edge if edge != "auto" else "black" if of_a_tool else "white"
        if self.edge == "black" and self.reading.level is None:
            raise DataError(
                f"{self.path}: black beyond the slide's edge is what TRIDENT and CLAM see, and the file has neither the "
                "magnifications of the one nor the level of the other; take `edge='white'` or `edge='skip'`"
            )
        over_edge = self._over_edge()
        self.num_over_edge = int(over_edge.sum())
        if self.edge == "skip":
            if over_edge.all():
                raise DataError(
                    f"{self.path}: all {len(self.coords)} patches extend over the edge of {self.slide.path}, so none is "
                    "left; take `edge='auto'`"
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
        """Reads one patch from the slide in mode RGB, ``patch_size_px`` on each side."""
        if self.reading.level is None:
            return super().__getitem__(index)
        x, y = self.coords[index].tolist()
        size_px = (self.patch_size_px, self.patch_size_px)
        size_level_px = (self.reading.size_level_px, self.reading.size_level_px)
        padding = (0, 0, 0) if self.edge == "black" else (255, 255, 255)
        patch = self.slide.read_level((x, y), self.reading.level, size_level_px, padding=padding)
        # Pillow's own default, as in TRIDENT
        return patch if patch.size == size_px else patch.resize(size_px, Image.Resampling.BICUBIC)
