"""Coordinate h5: CLAM's or TRIDENT's `coords` + the slide → patches in file order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError
from .h5_file import H5File, attributes, find_dataset, number, read_coords
from .slide import SLIDE_SUFFIXES, Slide


def find_slide(path: Path, name: str | None, folder: Path | None = None) -> Path:
    """Looks for the slide that a coordinate file belongs to.

    Args:
        path: The coordinate file; TRIDENT's ending `_patches` is not part of the slide's name.
        name: The slide's name by the file's attribute `name`, or None.
        folder: Where to look; None looks beside the file.

    Returns:
        The slide.

    Raises:
        DataError: If there is none, or more than one.
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
        raise DataError(
            f"{path}: several slides fit ({', '.join(file.name for file in found)}); choose one with --slide FILE"
        )
    raise DataError(
        f"{path}: the file holds coordinates only, and no slide named {' or '.join(sorted(stems))} lies {place}; "
        "give it with --slide FILE"
    )


class CoordinateH5Source:
    """Patches of a slide at coordinates that another tool chose.

    TRIDENT states `patch_size` (pixels of the patch) and `patch_size_level0`, or the two magnifications. CLAM states
    `patch_size` (pixels of the level) and `patch_level`. The attributes may live on `coords` or on the file.

    Args:
        path: The h5 file with `coords`, (N, 2) top-left corners in level-0 pixels.
        slide: The slide, or the folder it lies in; None looks for it beside the file.
        slide_resolution_um_per_px: Resolution of the slide's level 0 in µm per pixel; None takes the slide's own.

    Raises:
        DataError: If the file is not such a file, the slide is missing, or a coordinate lies outside it.
    """

    barcodes = None
    paths = None

    def __init__(
        self,
        path: str | Path,
        slide: str | Path | None = None,
        slide_resolution_um_per_px: float | None = None,
    ) -> None:
        self.path = Path(path)
        file = H5File(path)
        dataset = find_dataset(file, "coords")
        if dataset is None:
            raise DataError(f"{self.path}: no dataset 'coords'")
        values = attributes(file, dataset)
        self.coords: NDArray[np.int64] = read_coords(file, dataset)
        file.close()
        if len(self.coords) == 0:
            raise DataError(f"{self.path}: dataset 'coords' is empty")
        name = values.get("name", values.get("wsi_name"))
        if slide is None or Path(slide).is_dir():
            folder = None if slide is None else Path(slide)
            slide = find_slide(self.path, name if isinstance(name, str) else None, folder)
        self.slide = Slide(slide, slide_resolution_um_per_px)
        self.slide.close()
        self.patch_size_px, self.patch_size_level0 = self._patch_size(file, values)
        self._check_inside()
        native = self.slide.resolution_um_per_px
        self.resolution_um_per_px = native and native * self.patch_size_level0 / self.patch_size_px

    def _patch_size(self, file: H5File, values: Mapping[str, Any]) -> tuple[int, float]:
        patch_size = number(file, values, "patch_size")
        if patch_size is None:
            raise DataError(f"{self.path}: dataset 'coords' has no attribute 'patch_size'")
        size_px = round(patch_size)
        size_level0 = number(file, values, "patch_size_level0")
        magnification = number(file, values, "level0_magnification")
        target = number(file, values, "target_magnification")
        if size_level0 is not None:
            return size_px, size_level0
        if magnification is not None and target is not None:
            return size_px, patch_size * magnification / target
        level = values.get("patch_level")
        if level is None:
            raise DataError(
                f"{self.path}: dataset 'coords' has neither CLAM's attribute 'patch_level' nor TRIDENT's "
                "'patch_size_level0'"
            )
        num_levels = len(self.slide.level_downsamples)
        level = int(level)
        if not 0 <= level < num_levels:
            raise DataError(
                f"{self.path}: attribute 'patch_level' is {level}, but {self.slide.path} has the levels 0 to "
                f"{num_levels - 1}; is it the slide that the coordinates were made from?"
            )
        reduction = number(file, values, "custom_downsample") or 1.0
        return size_px, patch_size * self.slide.level_downsamples[level] * reduction

    def _check_inside(self) -> None:
        # tools let patches hang over any edge; one that lies beyond it as a whole means another slide
        beyond = (self.coords + self.patch_size_level0 <= 0) | (
            self.coords >= np.array(self.slide.dimensions)
        )
        outside = beyond.any(axis=1)
        if outside.any():
            index = int(outside.argmax())
            x, y = self.coords[index].tolist()
            width, height = self.slide.dimensions
            raise DataError(
                f"{self.path}: {int(outside.sum())} of {len(self.coords)} coordinates lie outside {self.slide.path} "
                f"({width} × {height} px), first patch {index} at x={x}, y={y}; give the right slide with --slide FILE"
            )

    def __len__(self) -> int:
        """Returns the number of patches."""
        return len(self.coords)

    def __getitem__(self, index: int) -> Image.Image:
        """Reads one patch from the slide.

        Args:
            index: From 0 to the number of patches.

        Returns:
            The patch in mode RGB, `patch_size_px` on each side; white beyond the slide's edge.
        """
        x, y = self.coords[index].tolist()
        side = self.patch_size_level0
        return self.slide.read((x, y), (side, side), (self.patch_size_px, self.patch_size_px))

    def name(self, index: int) -> str:
        """Names one patch for messages.

        Args:
            index: From 0 to the number of patches.

        Returns:
            The coordinate file, the patch's index and its level-0 corner.
        """
        x, y = self.coords[index].tolist()
        return f"{self.path} patch {index} at x={x}, y={y}"

    def close(self) -> None:
        """Closes the slide; the next read opens it again."""
        self.slide.close()
