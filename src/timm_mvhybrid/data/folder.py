"""Folder of images: directory → whole images in sorted order, and what Pillow silently drops of one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from ..runtime.errors import DataError, PatchError

_BITS_PER_SAMPLE = 258
_JPEG2000_SIZE_MARKER = b"\xff\x4f\xff\x51"
_JPEG2000_HEADER = 4096


def bits_per_channel(image: Image.Image) -> int:
    """Finds how many bits a channel has in a file just opened; of 16 bits of a colour Pillow keeps the upper 8."""
    if image.mode.startswith(("I", "F")):
        return 32 if image.mode in ("I", "F") else 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if image.format == "JPEG2000":
        return _jpeg2000_bits(image)
    if isinstance(image, PngImagePlugin.PngImageFile):
        # the decoder's raw mode, such as "RGB;16B"
        return 16 if any("16" in str(tile.args) for tile in image.tile) else 8
    return 8


def _jpeg2000_bits(image: Image.Image) -> int:
    """Reads the components' depths from the codestream's SIZ segment (ISO/IEC 15444-1, A.5.1)."""
    stream = image.fp  # type: ignore[attr-defined]
    position = stream.tell()
    stream.seek(0)
    header = stream.read(_JPEG2000_HEADER)
    stream.seek(position)
    start = header.find(_JPEG2000_SIZE_MARKER)
    # after the two markers: length, capabilities, eight numbers of 4 bytes, the number of components, three bytes each
    num_components = int.from_bytes(header[start + 40 : start + 42], "big")
    depths = header[start + 42 : start + 42 + 3 * num_components : 3]
    return max((depth & 0x7F) + 1 for depth in depths) if start >= 0 and depths else 8


def is_one_of_grey_planes(image: Image.Image) -> bool:
    """Says whether a TIFF just opened is grey only because a second grey page of the same size holds another channel."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode != "L" or image.n_frames < 2:
        return False
    size = image.size
    image.seek(1)
    same = bool(image.size == size and image.mode == "L")
    image.seek(0)
    return same


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".j2k")
# what Pillow's plugins raise on broken files
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def visible_files(folder: Path) -> Iterator[Path]:
    """Walks through a folder in sorted order, following links; hidden files and folders are left out."""
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


def on_white(image: Image.Image) -> Image.Image:
    """Converts an image of 8 bits per channel to RGB; what is transparent becomes white, like the glass of a slide."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def read_image(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Decodes an image file, given by its path or its content, to RGB of its own size; what is transparent becomes white.

    Raises:
        PatchError: If the file, which messages call by ``name`` or by its path, cannot be read as an image, has more than
            8 bits per channel, or is one of several grey planes.
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
        for file in visible_files(self.path):
            if file.name.lower().endswith(IMAGE_SUFFIXES):
                found.append(file.relative_to(self.path).as_posix())
            elif (suffix := file.suffix.lower()) in readable:
                left_out.setdefault(suffix, []).append(file)
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
