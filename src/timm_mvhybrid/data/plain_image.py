"""Images that no slide library opens (JPEG, PNG, TIFF without tiles), read as slides of one level."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ..runtime.errors import NotASlideError, PatchError
from .folder import read_image
from .slide import SLIDE_SUFFIXES, Slide

_LIMIT_LOCK = threading.RLock()


class PlainImage(Slide):
    """An image in memory behind the interface of ``Slide``; it states no resolution.

    Args:
        path: The image.
        resolution_um_per_px: Its resolution in µm per pixel; None leaves it unknown.

    Raises:
        PatchError: If it cannot be read as an image of colours of 8 bits.
    """

    def _open(self) -> Any:
        assert isinstance(self.path, Path)
        with _large_images():
            return _ImageInMemory(read_image(self.path))


def open_slide(path: str | Path, resolution_um_per_px: float | None = None) -> Slide:
    """Opens a whole slide, or an image that is none as a slide of one level.

    Args:
        path: The slide, or a JPEG, PNG or other image, which is then held in memory.
        resolution_um_per_px: Resolution of level 0 in µm per pixel; None takes what the slide states.

    Returns:
        The slide.

    Raises:
        DataError: If neither a slide library nor Pillow can read it.
    """
    try:
        return Slide(path, resolution_um_per_px)
    except NotASlideError as not_a_slide:
        try:
            return PlainImage(path, resolution_um_per_px)
        except PatchError as not_an_image:
            # what it calls itself is what its owner expects it to be
            if str(path).lower().endswith(SLIDE_SUFFIXES):
                raise not_a_slide from not_an_image
            raise not_an_image from None


class _ImageInMemory:
    """What ``Slide`` needs of a slide library."""

    level_downsamples = (1.0,)
    properties: ClassVar[dict[str, str]] = {}

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.dimensions = image.size
        self.level_dimensions = (image.size,)

    def read_region(self, corner: tuple[int, int], level: int, size_px: tuple[int, int]) -> Image.Image:
        """Reads a region, transparent outside the image."""
        box = (corner[0], corner[1], corner[0] + size_px[0], corner[1] + size_px[1])
        region = Image.new("RGBA", size_px)
        width, height = self.dimensions
        inside = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
        if inside[0] < inside[2] and inside[1] < inside[3]:
            region.paste(self._image.crop(inside), (inside[0] - box[0], inside[1] - box[1]))
        return region

    def close(self) -> None:
        """Frees the image."""
        self._image = Image.new("RGB", (1, 1))


@contextmanager
def _large_images() -> Iterator[None]:
    """Lets Pillow read images of any size: sections have more pixels than it expects of a picture."""
    with _LIMIT_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
