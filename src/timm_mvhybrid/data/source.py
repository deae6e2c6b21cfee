"""The protocol of all patch sources, and their detection: path → patch source."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.digest import file_sha256
from ..runtime.errors import DataError, NotASlideError
from .coordinate_h5 import CoordinateH5Source, Edge
from .folder import FolderSource
from .h5_file import H5File, find_dataset
from .patch_h5 import PatchH5Source
from .remote_path import AnyPath, RemotePath, as_path
from .slide import SLIDE_SUFFIXES, is_slide_folder
from .slide_files import slide_fingerprint, slide_sha256
from .slide_source import SlideSource
from .streamed import streamed_kind
from .tar import TAR_SUFFIX, TarSource, is_tar
from .tissue import TilingOptions

H5_SUFFIXES = (".h5", ".hdf5")
_H5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ACCEPTED = (
    f"a slide ({' '.join(SLIDE_SUFFIXES)} or what else OpenSlide opens, a folder of DICOM or of OME-Zarr), a folder of "
    "images, a patch h5 ('img' or 'imgs'), a coordinate h5 ('coords') or tars of images (a tar, a folder of them, shard-{000..009}.tar)"
)


class PatchSource(Protocol):
    """Patches in a fixed order, and what is known of them.

    Sources can be pickled and used after a fork: handles are opened lazily in each process.
    """

    @property
    def path(self) -> AnyPath:
        """The file or folder the patches come from."""

    @property
    def coords(self) -> NDArray[np.int64] | None:
        """Top-left corners in level-0 pixels, (N, 2) as x, y; None where unknown."""

    @property
    def barcodes(self) -> list[str] | None:
        """One unique name per spot; None where there are none."""

    @property
    def paths(self) -> list[str] | None:
        """Paths relative to ``path``, with forward slashes; None unless the source is a folder or tars."""

    @property
    def patch_size_px(self) -> int | None:
        """Side of the square patches in pixels; None where they differ or are not square."""

    @property
    def resolution_um_per_px(self) -> float | None:
        """Resolution of the patches in µm per pixel; None where unknown."""

    def __len__(self) -> int:
        """Returns the number of patches."""

    def __getitem__(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Reads one patch as an RGB image or as (H, W, 3) uint8, or raises ``PatchError``."""

    def name(self, index: int) -> str:
        """Names one patch for messages."""

    def close(self) -> None:
        """Closes what this process holds open; the next read opens it again."""


def source_digest(source: PatchSource, file_digest: str | None = None) -> str:
    """Hashes a source, SHA-256 in hex: its file, or its files and their names, and which patches are taken of it.

    Args:
        source: The patches.
        file_digest: SHA-256 of its file where that is known already; slides are large.
    """
    path = source.path
    if isinstance(path, RemotePath):
        # its bytes stay where they are
        file_digest = file_digest or slide_fingerprint(path)
    elif path.is_dir() and source.paths is not None:
        found = hashlib.sha256()
        for name in source.paths:
            found.update(f"{name}\n{file_sha256(path / name)}\n".encode())
        return found.hexdigest()
    found = hashlib.sha256((file_digest or slide_sha256(Path(str(path)))).encode())
    found.update(f"{len(source)} {source.patch_size_px} {source.resolution_um_per_px}".encode())
    if source.coords is not None:
        found.update(source.coords.tobytes())
    return found.hexdigest()


def open_source(
    path: str | AnyPath,
    *,
    tiling: TilingOptions | None = None,
    slide: str | AnyPath | None = None,
    edge: Edge = "auto",
) -> PatchSource:
    """Opens whatever holds patches; its kind is recognised by its content, not by its name.

    Args:
        path: A slide, a folder of images, a patch h5, a coordinate h5, a tar, a folder of tars or a pattern of tars
            such as ``shard-{000..009}.tar``; or the URL of a tar, of such a pattern or of a zarr store, such as
            ``s3://bucket/slide.zarr``.
        tiling: How slides are cut; patches that exist already keep their size and resolution. Its
            ``slide_resolution_um_per_px`` also serves coordinate h5 files.
        slide: The slide of a coordinate h5, or its folder; None looks for it beside the file.
        edge: How patches of a coordinate h5 that extend over the slide's edge are filled, see ``CoordinateH5Source``.

    Raises:
        DataError: If the path does not exist or is not of an accepted kind, or cannot be streamed.
        MissingPackageError: If what reads from other machines is not installed.
        RemoteError: If another machine does not answer.
    """
    path = as_path(path)
    tiling = tiling or TilingOptions()
    if isinstance(path, RemotePath):
        return TarSource(path) if streamed_kind(path) == "tar" else SlideSource(path, tiling)
    if path.is_dir():
        return SlideSource(path, tiling) if is_slide_folder(path) else _open_folder(path)
    if "{" in str(path) and not path.exists():
        return TarSource(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; accepted are {_ACCEPTED}") from error
    if is_tar(start) or path.suffix.lower() == TAR_SUFFIX:
        return TarSource(path)
    if not start.startswith(_H5_SIGNATURE):
        if path.suffix.lower() in H5_SUFFIXES:
            raise DataError(f"{path}: not an h5 file, or damaged; accepted are {_ACCEPTED}")
        try:
            return SlideSource(path, tiling)
        except NotASlideError as error:
            raise NotASlideError(f"{error}; accepted are {_ACCEPTED}") from error
    file = H5File(path)
    has_patches = find_dataset(file, "img", "imgs") is not None
    has_coords = find_dataset(file, "coords") is not None
    names = sorted(file.handle)
    file.close()
    if has_patches:
        return PatchH5Source(path)
    if has_coords and "embeddings" not in names and "features" not in names:
        return CoordinateH5Source(path, slide, tiling.slide_resolution_um_per_px, edge)
    raise DataError(f"{path}: holds the datasets {', '.join(names) or '(none)'}; accepted are {_ACCEPTED}")


def _open_folder(path: Path) -> PatchSource:
    """Opens a folder of tars or of images; a folder of several other sources is not a single source."""
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    h5_files = [name for name in names if name.lower().endswith(H5_SUFFIXES)]
    if h5_files:
        raise DataError(f"{path}: holds several sources; give one of them, such as {path / h5_files[0]}")
    if any(name.endswith(TAR_SUFFIX) and not name.startswith(".") for name in names):
        return TarSource(path)
    return FolderSource(path)
