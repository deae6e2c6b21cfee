"""What can be read from other machines without a copy, tars of images and zarr stores, and what tells one content from another."""

from __future__ import annotations

from typing import Literal

from ..runtime.errors import DataError, RemoteError
from .level_image import ZARR_SUFFIX, ZarrImage, is_zarr
from .remote_path import RemotePath
from .tar import TAR_SUFFIX, is_tar

_KNOWN_BY_NAME = {
    ".csv": "a table",
    ".h5": "an h5 file",
    ".hdf5": "an h5 file",
    ".dcm": "DICOM",
    ".zip": "a zip",
}
_HEADER_BYTES = 512


def streamed_kind(path: RemotePath) -> Literal["tar", "zarr"]:
    """Says what is read from another machine, by its name or else by its content.

    Raises:
        DataError: It is of a kind that only a copy on this machine can be read of.
        RemoteError: It is not there, or its machine does not answer.
    """
    suffix = path.suffix.lower()
    if suffix == TAR_SUFFIX:
        return "tar"
    if f"{ZARR_SUFFIX}/" in f"{path}/".lower():
        if path.has_query:
            raise DataError(
                f"{path}: a zarr store has many files, and a URL with a query is of one; give the store without it, with "
                "credentials as fsspec finds them, or download it first"
            )
        return "zarr"
    # without a suffix, or with one that may be part of a name
    if suffix not in _KNOWN_BY_NAME and not _is_of_slides(suffix):
        try:
            if is_tar(path.read(0, _HEADER_BYTES)):
                return "tar"
        except RemoteError as error:
            # of a store in a bucket there are only the files in it
            if not error.is_missing and not path.is_dir():
                raise
        if is_zarr(path):
            return "zarr"
        if not path.exists():
            raise RemoteError(f"{path}: there is no such file; check the URL", is_missing=True)
    what = _KNOWN_BY_NAME.get(suffix, f"{suffix or 'this'}, which slide libraries read from disks,")
    raise DataError(
        f"{path}: {what} cannot be streamed, but only tars of images and zarr stores can; download it first, and give the copy"
    )


def _is_of_slides(suffix: str) -> bool:
    from .slide import SLIDE_SUFFIXES

    return suffix in SLIDE_SUFFIXES


def check_streamed(path: RemotePath) -> None:
    """Makes sure before work starts that something is there and can be streamed, and that what reads it is installed.

    Raises:
        DataError: It cannot be streamed.
        MissingPackageError: A package is not installed.
        RemoteError: It is not there, or its machine does not answer.
    """
    there = is_zarr(path) if streamed_kind(path) == "zarr" else path.exists()
    if not there:
        raise RemoteError(f"{path}: there is no such file or store; check the URL", is_missing=True)


def streamed_fingerprint(path: RemotePath) -> str:
    """Tells one content from another: of a tar by size and ETag or the like, of a store by all its files or by its pixels.

    A web server lists no files; there the description of a store, its smallest level and 16 chunks of its largest stand
    for it.

    Returns:
        32 hexadecimal digits.

    Raises:
        RemoteError: Its machine does not answer.
    """
    if streamed_kind(path) == "tar":
        return path.fingerprint()
    listed = "" if path.is_web else path.fingerprint_of_folder()
    return listed or ZarrImage(path).fingerprint()
