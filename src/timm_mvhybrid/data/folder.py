"""Folder of images: directory → whole images in sorted order, named by their relative paths."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from ..runtime.errors import DataError, PatchError
from .image_depth import bits_per_channel, is_one_of_grey_planes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".j2k")
# what Pillow's plugins raise on broken files
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def on_white(image: Image.Image) -> Image.Image:
    """Converts an image to RGB; what is transparent becomes white, like the glass of a slide.

    Args:
        image: Any mode of 8 bits per channel.

    Raises:
        ValueError: If Pillow cannot convert the mode.
    """
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def read_image(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Decodes one image file.

    Args:
        file: Its path, or its content.
        name: What messages call it; None takes the path.

    Returns:
        The image in mode RGB, in its own size; what is transparent becomes white.

    Raises:
        PatchError: If the file cannot be read as an image, has more than 8 bits per channel, or is one of several grey
            planes.
    """
    try:
        with Image.open(file) as image:
            # Pillow would silently take the upper byte of each colour, and the first plane
            if (bits := bits_per_channel(image)) > 8:
                raise ValueError(
                    f"more than 8 bits per channel ({bits}), whose range no convention fixes; convert it to 8-bit RGB"
                )
            if is_one_of_grey_planes(image):
                raise ValueError("several grey channels, a page each, not colours; write it as RGB")
            return on_white(image)
    except UnidentifiedImageError as error:
        # Pillow's own message names a file in memory by its address
        raise PatchError(
            f"{name or file}: not a readable image (of a kind that Pillow does not know)"
        ) from error
    except _DECODING_ERRORS as error:
        raise PatchError(f"{name or file}: not a readable image ({error})") from error


class FolderSource:
    """Every image below a folder, each as one patch.

    Args:
        path: The folder; searched recursively, hidden files and folders left out.

    Raises:
        DataError: If the folder holds no image.
    """

    coords = None
    barcodes = None
    patch_size_px = None
    resolution_um_per_px = None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        found = []
        readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        left_out: dict[str, list[Path]] = {}
        for folder, subfolders, names in os.walk(self.path, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                if name.startswith("."):
                    continue
                if name.lower().endswith(IMAGE_SUFFIXES):
                    found.append(Path(folder, name).relative_to(self.path).as_posix())
                elif (suffix := Path(name).suffix.lower()) in readable:
                    left_out.setdefault(suffix, []).append(Path(folder, name))
        self.paths = sorted(found)
        others = ", ".join(
            f"{len(files)} {suffix} such as {min(files)}" for suffix, files in sorted(left_out.items())
        )
        if not self.paths:
            but = f", only {others}" if others else ""
            raise DataError(f"{self.path}: the folder holds no image ({', '.join(IMAGE_SUFFIXES)}){but}")
        if others:
            warnings.warn(
                f"{self.path}: left out are {others}; convert them to PNG if they are patches", stacklevel=2
            )

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        """Reads one image, in mode RGB and its own size, or raises ``PatchError``."""
        return read_image(self.path / self.paths[index])

    def name(self, index: int) -> str:
        """Names one image for messages, by its path."""
        return str(self.path / self.paths[index])

    def close(self) -> None:
        """Does nothing: no file stays open."""
