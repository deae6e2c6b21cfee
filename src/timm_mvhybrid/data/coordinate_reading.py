"""The attributes of a coordinate file → the pixels of the slide that its writer reads for each patch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import DataError
from .h5_file import H5File, number

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
    """Says whether TRIDENT or CLAM wrote a file, rather than someone else in their layout.

    Returns:
        Whether there is one of the folder names that each of them writes beside its coordinates.
    """
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
