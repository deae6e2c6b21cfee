"""What Pillow silently drops of an image file: bits beyond the eighth, and grey planes beyond the first."""

from __future__ import annotations

from PIL import Image, PngImagePlugin, TiffImagePlugin

_BITS_PER_SAMPLE = 258
_JPEG2000_SIZE_MARKER = b"\xff\x4f\xff\x51"
_JPEG2000_HEADER = 4096


def bits_per_channel(image: Image.Image) -> int:
    """Finds how many bits a channel has in the file; of 16 bits of a colour Pillow keeps the upper 8.

    Args:
        image: As ``Image.open`` returns it, before its pixels are loaded.
    """
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
    """Says whether a TIFF is grey only because the other channels are on further pages.

    Args:
        image: As ``Image.open`` returns it, before its pixels are loaded.

    Returns:
        Whether a second grey page has the same size; smaller ones are thumbnails.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode != "L" or image.n_frames < 2:
        return False
    size = image.size
    image.seek(1)
    same = bool(image.size == size and image.mode == "L")
    image.seek(0)
    return same
