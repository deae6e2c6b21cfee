"""Manifest: a list of sources with weights → one indexable set of samples.

A manifest is JSON: ``{"sources": [{"path": "slides/a.h5", "weight": 2.0}, "images", …]}``. An entry is a path or an
object with ``path`` and, optionally, ``weight``, ``name``, ``slide`` (a slide, or the folder of the slides, for
coordinate h5) and ``suffix`` (for tars). Paths are relative to the manifest.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..runtime.errors import DataError, SlideChoiceError
from .coordinate_h5 import Edge
from .folder import IMAGE_SUFFIXES, visible_files
from .remote_path import AnyPath, RemotePath, as_path, is_url
from .samples import Samples
from .slide import SLIDE_SUFFIXES
from .source import H5_SUFFIXES, PatchSource, open_source
from .tar import TAR_SUFFIX, TarSource
from .tile_store import MANIFEST_NAME
from .tissue import TilingOptions

_LARGEST_PATCH_PX = 4096
# suffixes that only slides have; single patches are stored as .tif, too
_SUFFIXES_OF_KINDS = {
    "h5 files": H5_SUFFIXES,
    "tars": (TAR_SUFFIX,),
    "slides": tuple(suffix for suffix in SLIDE_SUFFIXES if suffix not in IMAGE_SUFFIXES),
    "images": IMAGE_SUFFIXES,
}


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """One entry of a manifest.

    Attributes:
        path: A source, or a folder of sources; or the URL of a tar or zarr store.
        weight: How often a sample of it is drawn, relative to samples of weight 1.
        name: Its name in fingerprints, instead of its path's last part; for what a folder or manifest holds, the first
            part of the names.
        slide: The slide of a coordinate h5, or the folder of the slides; None looks beside the h5.
        suffix: End of the names to take from tars; None takes the images.

    Raises:
        DataError: If the weight is not a number above 0.
    """

    path: AnyPath
    weight: float = 1.0
    name: str | None = None
    slide: Path | None = None
    suffix: str | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight < math.inf:
            raise DataError(f"{self.path}: the weight must be a number above 0, not {self.weight!r}")


def read_manifest(path: str | Path) -> list[SourceEntry]:
    """Reads a manifest.

    Args:
        path: The JSON file.

    Returns:
        Its entries, with paths that no longer depend on where the manifest is.

    Raises:
        DataError: If the file is not a manifest, or an entry has an unknown or missing key.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error})") from error
    sources = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(sources, list) or not sources:
        raise DataError(f'{path}: a manifest is an object with a list "sources" of at least one entry')
    return [_entry(path, number, item) for number, item in enumerate(sources)]


def _entry(manifest: Path, number: int, item: Any) -> SourceEntry:
    where = f"{manifest}: entry {number}"
    if isinstance(item, str):
        item = {"path": item}
    if not isinstance(item, dict) or not isinstance(item.get("path"), str):
        raise DataError(f'{where} must be a path, or an object with "path", not {item!r}')
    known = [field.name for field in dataclasses.fields(SourceEntry)]
    unknown = [key for key in item if key not in known]
    if unknown:
        raise DataError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(known)}")
    for key in ("name", "slide", "suffix"):
        if not isinstance(item.get(key), str | None):
            raise DataError(f"{where}: {key!r} must be text, not {item[key]!r}")
    folder = manifest.parent
    paths = {
        key: as_path(item[key]) if is_url(item[key]) else folder / item[key]
        for key in ("path", "slide")
        if item.get(key) is not None
    }
    try:
        return SourceEntry(**{**item, **paths})
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def open_samples(
    paths: str | AnyPath | Sequence[str | AnyPath],
    *,
    tiling: TilingOptions | None = None,
    slides: str | Path | None = None,
    edge: Edge = "auto",
) -> Samples:
    """Opens everything that paths name as one set of samples.

    A path is a manifest (``.json``), anything that ``open_source`` takes, or a folder: one with a ``manifest.json`` (a
    patch store), of h5 files, of slides, of tars, or of images.

    Args:
        paths: One path or several.
        tiling: How slides are cut.
        slides: Folder of the slides of coordinate h5 files, or their slide; an entry's own ``slide`` comes before it,
            and None looks beside each file.
        edge: How patches of coordinate h5 files that extend over the slide's edge are filled, see
            ``CoordinateH5Source``.

    Returns:
        The samples, in the order of the paths; within a folder in that of the names.

    Raises:
        DataError: If something is missing or cannot be used, or a folder's content is ambiguous.
    """
    if isinstance(paths, str | Path | RemotePath):
        paths = [paths]
    slide = None if slides is None else Path(slides)
    if slide is not None and not slide.exists():
        raise DataError(f"{slide}: no such folder of slides, by `slides`; correct it")
    entries = [leaf for path in paths for leaf in _expand(SourceEntry(path=as_path(path), slide=slide))]
    sources = [_open(entry, tiling or TilingOptions(), edge) for entry in entries]
    return Samples(
        sources, weights=[entry.weight for entry in entries], names=[entry.name or "" for entry in entries]
    )


def _expand(entry: SourceEntry, within: tuple[Path, ...] = ()) -> Iterator[SourceEntry]:
    """Replaces manifests and folders by what they hold; weights are multiplied and names joined."""
    path = entry.path
    if isinstance(path, RemotePath):
        yield dataclasses.replace(entry, name=path.name if entry.name is None else entry.name)
        return
    prefix = "" if entry.name is None else f"{entry.name}/"
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    if manifest.suffix.lower() == ".json" and (manifest is path or manifest.is_file()):
        if manifest.resolve() in within:
            raise DataError(f"{manifest}: the manifest holds itself")
        for inner in read_manifest(manifest):
            merged = dataclasses.replace(
                inner,
                weight=entry.weight * inner.weight,
                name=prefix + (inner.path.name if inner.name is None else inner.name),
                slide=inner.slide or entry.slide,
                suffix=inner.suffix or entry.suffix,
            )
            yield from _expand(merged, (*within, manifest.resolve()))
    elif path.is_dir() and (files := _sources_below(path)) != [path]:
        for file in files:
            yield dataclasses.replace(entry, path=file, name=prefix + file.relative_to(path).as_posix())
    else:
        yield dataclasses.replace(entry, name=path.name if entry.name is None else entry.name)


def _sources_below(folder: Path) -> list[Path]:
    """Finds the sources in a folder: h5 files, tars and slides, or the folder itself if it holds images only."""
    files = list(visible_files(folder))
    found = {
        kind: [file for file in files if file.name.lower().endswith(suffixes)]
        for kind, suffixes in _SUFFIXES_OF_KINDS.items()
    }
    tiffs = [file for file in found["images"] if file.suffix.lower() in SLIDE_SUFFIXES]
    if tiffs and _is_large(tiffs[0]):
        found["slides"] += tiffs
        found["images"] = [file for file in found["images"] if file not in tiffs]
    present = [kind for kind, files in found.items() if files]
    if not present:
        raise DataError(f"{folder}: the folder holds no h5 file, tar, slide or image")
    if present == ["images"]:
        return [folder]
    # the slides beside coordinate h5 files belong to them
    if "h5 files" in present:
        present = [kind for kind in present if kind != "slides"]
    if "images" in present:
        raise DataError(
            f"{folder}: the folder holds {' and '.join(present)}, such as {found['images'][0]}; name what is meant in a "
            "manifest, or give a folder of one kind"
        )
    return sorted(file for kind in present for file in found[kind])


def _is_large(path: Path) -> bool:
    """Distinguishes slides from single patches among TIFF files by the size that the file states."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return max(image.size) > _LARGEST_PATCH_PX
    except Image.DecompressionBombError:
        return True
    # reading it as an image will show what it is
    except (OSError, SyntaxError, ValueError):
        return False


def _open(entry: SourceEntry, tiling: TilingOptions, edge: Edge) -> PatchSource:
    if entry.suffix is not None:
        return TarSource(entry.path, entry.suffix)
    try:
        return open_source(entry.path, tiling=tiling, slide=entry.slide, edge=edge)
    except SlideChoiceError as error:
        raise DataError(
            f"{error.cause}; name the folder of the slides with `slides=FOLDER`, or the slide in a manifest with "
            'the key "slide"'
        ) from error
