"""TIFFs as other programs write them: colours that are not 8-bit RGB, planes, OME-XML, truncation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

PIXELS = np.stack(
    [
        200 - np.arange(320)[None, :] // 64 * 6 + np.zeros((300, 1), int),
        80 + np.arange(300)[:, None] // 60 * 5 + np.zeros((1, 320), int),
        150 + (np.arange(300)[:, None] + np.arange(320)[None, :]) // 124 * 4,
    ],
    axis=2,
).astype(np.uint8)
PLANES = np.ascontiguousarray(np.moveaxis(PIXELS, 2, 0))
_DEEP = PIXELS.astype(np.uint16) * 16
_HALF_MICRON = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}


def _palette() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, colours of 16 bits as TIFF wants them, and the colours that come of them."""
    image = Image.fromarray(PIXELS).quantize(256)
    colours = np.zeros((256, 3), np.uint16)
    used = np.array(image.getpalette()).reshape(-1, 3)
    colours[: len(used)] = used * 257
    return np.asarray(image), np.ascontiguousarray(colours.T), np.asarray(image.convert("RGB"))


_INDICES, _COLOURS, _FROM_PALETTE = _palette()
_GREY = np.dstack([PIXELS[..., 0]] * 3)
_OPAQUE = np.full(PIXELS.shape[:2], 255, np.uint8)


def _converted(mode: str) -> np.ndarray:
    return np.asarray(Image.fromarray(PIXELS).convert(mode))


# name → data, options of tifffile, and the colours that are meant; None where there are none
KINDS: dict[str, tuple[np.ndarray, dict[str, object], np.ndarray | None]] = {
    "rgb": (PIXELS, {"photometric": "rgb"}, PIXELS),
    "rgb planes": (PLANES, {"photometric": "rgb", "planarconfig": "separate"}, PIXELS),
    "rgb jpeg": (
        PIXELS,
        {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 98}},
        PIXELS,
    ),
    "rgba": (np.dstack([PIXELS, _OPAQUE]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, PIXELS),
    "rgba premultiplied": (
        np.dstack([PIXELS // 2, _OPAQUE // 2]),
        {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        np.uint8(PIXELS // 2 + 128),
    ),
    "rgb and unknown": (np.dstack([PIXELS, _OPAQUE // 3]), {"photometric": "rgb", "extrasamples": [0]}, None),
    "palette": (_INDICES, {"photometric": "palette", "colormap": _COLOURS}, _FROM_PALETTE),
    "cmyk": (_converted("CMYK"), {"photometric": "separated"}, PIXELS),
    "ycbcr": (_converted("YCbCr"), {"photometric": "ycbcr"}, PIXELS),
    "white is zero": (255 - PIXELS[..., 0], {"photometric": "miniswhite"}, _GREY),
    "black is zero": (PIXELS[..., 0], {"photometric": "minisblack"}, _GREY),
    "bilevel": (PIXELS[..., 0] > 190, {"photometric": "minisblack"}, np.uint8(255 * (_GREY > 190))),
    "rgb 16 bits": (_DEEP, {"photometric": "rgb"}, None),
    "grey 16 bits": (_DEEP[..., 0], {"photometric": "minisblack"}, None),
    "cmyk 16 bits": (np.dstack([_DEEP, _DEEP[..., :1]]), {"photometric": "separated"}, None),
    "rgb float": (PIXELS.astype(np.float32), {"photometric": "rgb"}, None),
    "three grey pages": (PLANES, {"photometric": "minisblack"}, None),
    "five grey pages": (np.concatenate([PLANES, PLANES[:2]]), {"photometric": "minisblack"}, None),
    "three grey samples": (PIXELS, {"photometric": "minisblack", "planarconfig": "contig"}, None),
    "three grey sample planes": (PLANES, {"photometric": "minisblack", "planarconfig": "separate"}, None),
}


def write_kind(path: Path, kind: str, *, tiled: bool) -> np.ndarray | None:
    """Writes one of `KINDS` at 0.5 µm/px and returns the colours that are meant, or None."""
    data, options, meant = KINDS[kind]
    layout = {"tile": (128, 128)} if tiled else {"rowsperstrip": 64}
    tifffile.imwrite(path, data, metadata=None, **_HALF_MICRON, **layout, **options)
    return meant


def write_ome(
    path: Path,
    data: np.ndarray = PIXELS,
    *,
    axes: str = "YXS",
    tiled: bool = True,
    levels: int = 1,
    tags: dict[str, object] | None = None,
    **metadata: object,
) -> None:
    """Writes an OME-TIFF; its smaller levels lie in sub-IFDs."""
    options = {
        "photometric": "rgb" if axes.endswith("S") else "minisblack",
        "tile": (128, 128) if tiled else None,
    }
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(data, subifds=levels - 1, metadata={"axes": axes, **metadata}, **(tags or {}), **options)
        for level in range(1, levels):
            step = 2**level
            small = data[::step, ::step] if axes.endswith("S") else data[..., ::step, ::step]
            writer.write(np.ascontiguousarray(small), subfiletype=1, metadata=None, **options)


def write_truncations(folder: Path, name: str, write: Callable[[Path], object], num: int) -> list[Path]:
    """Writes a file and `num` beginnings of it, evenly spaced from nothing to all but one byte."""
    whole = folder / name
    write(whole)
    content = whole.read_bytes()
    cuts = sorted({round(cut) for cut in np.linspace(0, len(content) - 1, num)})
    found = []
    for cut in cuts:
        (folder / str(cut)).mkdir()
        path = folder / str(cut) / name
        path.write_bytes(content[:cut])
        found.append(path)
    return found
