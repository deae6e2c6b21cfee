"""What the tags of a TIFF say about its pixels: whether they are colours, who reads them right, and their size.

OpenSlide and tiffslide look at few of these tags: 16 bits lose their lower half, the first of several grey planes is
taken for the whole picture, and colours that are not RGB are taken for RGB. So the tags are checked first.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..runtime.errors import DataError

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# PhotometricInterpretation, TIFF 6.0 and its supplements
_GREY, _RGB, _YCBCR = (0, 1), 2, 6
_BLACK_IS_ZERO = 1
# JPEG's decoder turns YCbCr into RGB, that of JPEG 2000 does not; Aperio's first kind of JPEG 2000 is YCbCr whatever
# the photometric tag says
_JPEG, _APERIO_JPEG2000_YCBCR = 7, 33003
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_UNSIGNED = 1
_SEPARATE_PLANES = 2
# from here on TIFF leaves tags to companies, some of which write them in ways that no reader understands
_FIRST_PRIVATE_TAG = 32768
# OME-XML states a length with its unit, µm if none is named; both of Unicode's mus are in use
_UM_PER_UNIT = {
    **{"m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6},
    **{"Å": 1e-4, "in": 25400.0},
}
# a channel's colour in OME-XML: red, green, blue and opacity in 32 bits, by the standard as a signed number
_OME_COLOURS = (0xFF0000FF, 0x00FF00FF, 0x0000FFFF)


@dataclass(frozen=True, kw_only=True)
class TiffTags:
    """What must be known of a TIFF before a slide library reads it.

    Attributes:
        openslide_problem: What OpenSlide would get wrong; empty for nothing.
        tiffslide_problem: What tiffslide would get wrong; empty for nothing.
        has_inner_levels: Whether smaller levels are SubIFDs of the largest, as OME-TIFF keeps them; OpenSlide sees the largest
            alone.
        um_per_px: Resolution by OME-XML in µm per pixel, x and y; None where there is none.
    """

    openslide_problem: str = ""
    tiffslide_problem: str = ""
    has_inner_levels: bool = False
    um_per_px: tuple[float, float] | None = None


def read_tiff_tags(path: Path) -> TiffTags:
    """Reads what a TIFF says about its pixels, and so what the libraries would get wrong; nothing for other files.

    Raises:
        DataError: If the file is damaged or holds no colours of 8 bits, so that no library could read it right.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) not in _SIGNATURES:
                return TiffTags()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    try:
        import tifffile
    except ImportError:
        warnings.warn(
            f"{path}: the colours' depth and kind are not checked, because tifffile is not installed; "
            "pip install 'timm-mvhybrid[slides]' brings it",
            stacklevel=2,
        )
        return TiffTags()
    try:
        with quiet_tifffile(), tifffile.TiffFile(path) as file:
            _check_whole(file)
            return _judge(path, file)
    except DataError:
        raise
    # tifffile passes on whatever a broken file raises inside it, and what it does not notice is a ValueError of ours
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: truncated or damaged TIFF ({reason}); copy it again") from error


@contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Keeps tifffile from logging what it finds in a broken file; an exception reports what matters."""
    log = logging.getLogger("tifffile")
    log.addFilter(_drop)
    try:
        yield
    finally:
        log.removeFilter(_drop)


def _drop(_: logging.LogRecord) -> bool:
    return False


def _check_whole(file: Any) -> None:
    """Raises ValueError where a file ends before its pages do: the libraries would take the rest for fewer levels."""
    size = file.filehandle.size
    ends = [end for page in file.pages for end in _data_ends(page)]
    file.filehandle.seek(file.pages.next_page_offset)
    link = file.filehandle.read(file.tiff.offsetsize)
    if any(link) or len(link) < file.tiff.offsetsize:
        raise ValueError(f"page {len(file.pages) + 1} is missing")
    for number, page in enumerate(file.pages, 1):
        if lost := sorted(_lost_tags(file, page)):
            raise ValueError(f"page {number}: what tag {lost[0]} points to is missing")
    page = file.pages[0]
    if len(page.dataoffsets) < math.prod(page.chunked):
        raise ValueError(
            f"{page.imagewidth} × {page.imagelength} px of {math.prod(page.chunked)} tiles or strips, and it has "
            f"{len(page.dataoffsets)}"
        )
    if max(ends, default=0) > size:
        raise ValueError(f"{size} of at least {max(ends)} bytes")


def _data_ends(page: Any) -> Iterator[int]:
    """Lists where the data of a page and of its smaller levels end, in bytes from the file's start."""
    yield from (
        offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True) if count
    )
    yield from page.subifds or ()
    for level in page.pages or ():
        yield from _data_ends(level)


def _lost_tags(file: Any, page: Any) -> set[int]:
    """Lists the standard tags of a page and its smaller levels that tifffile left out: their values are missing."""
    import tifffile

    tiff = file.tiff
    file.filehandle.seek(page.offset)
    (num,) = struct.unpack(tiff.tagnoformat, file.filehandle.read(tiff.tagnosize))
    entries = file.filehandle.read(num * tiff.tagsize)
    codes_types = (
        struct.unpack_from(f"{tiff.byteorder}HH", entries, index * tiff.tagsize) for index in range(num)
    )
    stated = {code for code, kind in codes_types if kind in tifffile.TIFF.DATA_FORMATS}
    lost = {code for code in stated - {tag.code for tag in page.tags} if code < _FIRST_PRIVATE_TAG}
    return lost.union(*(_lost_tags(file, level) for level in page.pages or ()))


def _judge(path: Path, file: Any) -> TiffTags:
    """Judges an opened TIFF by the first of its pages, which is a slide's largest level."""
    page = file.pages[0]
    bits = _largest(page.bitspersample)
    if bits > 8 or _largest(page.sampleformat) != _UNSIGNED:
        raise DataError(
            f"{path}: {bits} bits per channel ({page.dtype}), whose range no convention fixes; "
            "convert it to 8-bit RGB"
        )
    ome = _ome_pixels(file)
    if page.photometric in _GREY and (num_planes := _num_grey_planes(file, page)) > 1:
        if not (num_planes == 3 and file.series[0].axes == "CYX" and _are_red_green_blue(ome)):
            raise DataError(
                f"{path}: {num_planes} grey channels{_channel_names(ome)}, not colours, and a reader would take one "
                "grey channel for the picture; write it as RGB (raw2ometiff --rgb, tifffile photometric='rgb')"
            )
        openslide_problem = "reads the first of three channels only"
    else:
        openslide_problem = ""
    if 0 in page.extrasamples and page.photometric not in _GREY:
        raise DataError(
            f"{path}: {page.samplesperpixel} samples per pixel, and the tag ExtraSamples leaves open what the last "
            "means; write it as RGB"
        )
    return TiffTags(
        openslide_problem=openslide_problem,
        tiffslide_problem=_tiffslide_problem(page),
        has_inner_levels=bool(page.subifds),
        um_per_px=_ome_resolution(ome),
    )


def _tiffslide_problem(page: Any) -> str:
    """Says what tiffslide would get wrong: it takes any samples for grey, RGB or RGBA, whatever the tags say."""
    photometric = getattr(page.photometric, "name", page.photometric)
    if page.compression == _APERIO_JPEG2000_YCBCR:
        return "mistakes YCbCr in JPEG 2000 (tag Compression: 33003) for RGB"
    decoded = page.photometric == _YCBCR and page.compression == _JPEG
    if page.photometric not in (_BLACK_IS_ZERO, _RGB) and not decoded:
        return f"mistakes colours of the kind {photometric} (tag PhotometricInterpretation) for RGB or grey"
    if _largest(page.bitspersample) != 8:
        return f"does not read {page.bitspersample} bits per channel (tag BitsPerSample)"
    if page.planarconfig == _SEPARATE_PLANES and page.samplesperpixel > 1:
        return "does not read colours in separate planes (tag PlanarConfiguration)"
    if _ASSOCIATED_ALPHA in page.extrasamples:
        return "mistakes premultiplied colours (tag ExtraSamples) for plain ones"
    return ""


def _largest(value: Any) -> int:
    """Returns the largest of a tag's values, which may be one for all samples or one each."""
    return int(max(value)) if isinstance(value, tuple | list) else int(value)


def _num_grey_planes(file: Any, page: Any) -> int:
    """Counts the grey planes that make up the picture: pages of one size, channels of OME or ImageJ, or samples."""
    alpha = sum(kind in (_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA) for kind in page.extrasamples)
    series = file.series[0]
    stacked = [length for axis, length in zip(series.axes, series.shape, strict=True) if axis not in "YXS"]
    return math.prod(stacked) * (page.samplesperpixel - alpha)


def _ome_pixels(file: Any) -> ElementTree.Element | None:
    """Finds what OME-XML says about the first image; None if there is none, or none that can be parsed."""
    if not file.is_ome:
        return None
    try:
        return ElementTree.fromstring(file.ome_metadata).find("{*}Image/{*}Pixels")
    except ElementTree.ParseError:
        return None


def _ome_resolution(pixels: ElementTree.Element | None) -> tuple[float, float] | None:
    if pixels is None:
        return None
    try:
        x, y = (
            float(pixels.attrib[f"PhysicalSize{axis}"])
            * _UM_PER_UNIT[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        )
    except (KeyError, ValueError):
        return None
    return x, y


def _are_red_green_blue(pixels: ElementTree.Element | None) -> bool:
    """Says whether three channels are the three colours, by their names or by the colours of their display."""
    if pixels is None:
        return False
    channels = pixels.findall("{*}Channel")
    names = [channel.get("Name", "").lower() for channel in channels]
    if names in (["red", "green", "blue"], ["r", "g", "b"]):
        return True
    try:
        colours = tuple(int(channel.get("Color", "-1")) % 2**32 for channel in channels)
    except ValueError:
        return False
    return colours == _OME_COLOURS


def _channel_names(pixels: ElementTree.Element | None) -> str:
    channels = [] if pixels is None else pixels.findall("{*}Channel")
    names = [channel.get("Name", "") for channel in channels]
    return f" ({', '.join(names)})" if all(names) and names else ""
