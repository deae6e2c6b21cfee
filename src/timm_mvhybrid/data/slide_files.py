"""Which files a slide is made of, and whether they are what they were: path → files, a stamp, a fingerprint."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from ..runtime.digest import digest_of_files, file_fingerprint, file_sha256, path_fingerprint, path_sha256
from .dicom import dicom_files, dicom_series, is_dicom
from .remote_path import AnyPath, RemotePath
from .streamed import streamed_fingerprint, streamed_kind

# of 3DHISTECH (MIRAX) and Hamamatsu: a file that is given, and others that it names
_MIRAX_SUFFIX = ".mrxs"
_INDEX_SUFFIXES = (".vms", ".vmu")
_MOST_INDEX_BYTES = 1 << 20
_Stat = tuple[str, int, int]


def slide_files(path: Path) -> list[Path]:
    """Lists the files that a slide is made of, sorted: the file itself, and what belongs to it.

    Of one file of DICOM these are the files of its series in the same folder; of MIRAX the folder of the same name; of
    Hamamatsu's ``.vms`` and ``.vmu`` the files that it names; of a folder all files in it, however deep.

    Raises:
        OSError: The file cannot be read.
    """
    if path.is_dir():
        return _files_below(path)
    suffix = path.suffix.lower()
    if suffix == _MIRAX_SUFFIX:
        return sorted([path, *_files_below(path.with_suffix(""))])
    if suffix in _INDEX_SUFFIXES:
        return sorted([path, *_named_in(path)])
    if is_dicom(path):
        series = _series_in(path.parent, tuple(map(_stat, dicom_candidates(path.parent))))
        return next((list(files) for files in series if path in files), [path])
    return [path]


def slide_fingerprint(path: AnyPath) -> str:
    """Tells one slide from another by samples of all its files, see ``file_fingerprint``; names and times do not count.

    What is on another machine is told from another as ``streamed_fingerprint`` says.

    Returns:
        32 hexadecimal digits.

    Raises:
        RemoteError: Its machine does not answer.
    """
    if isinstance(path, RemotePath):
        return streamed_fingerprint(path)
    if path.is_dir():
        return path_fingerprint(path)
    files = slide_files(path)
    if len(files) == 1:
        return file_fingerprint(path)
    return digest_of_files(path.parent, files, file_fingerprint)[:32]


def slide_sha256(path: Path) -> str:
    """Computes the sha256 of a slide of one file, or one of all its files and of their names."""
    files = [path] if path.is_dir() else slide_files(path)
    return path_sha256(path) if len(files) == 1 else digest_of_files(path.parent, files, file_sha256)


def slide_stamp(path: AnyPath) -> str:
    """Notes sizes and times of change of a slide's files, by which one that is unchanged is known without reading it.

    Returns:
        Text; empty where nothing is known, as of a file that is missing or of a folder on another machine.

    Raises:
        RemoteError: Its machine does not answer.
    """
    if isinstance(path, RemotePath):
        return path.stamp() if streamed_kind(path) == "tar" else ""
    try:
        found = [_stat(file) for file in slide_files(path)]
    except OSError:
        return ""
    if len(found) == 1 and not path.is_dir():
        return f"{found[0][1]} {found[0][2]}"
    if not found:
        return ""
    names = [(os.path.relpath(name, path.parent), size, time) for name, size, time in found]
    digest = hashlib.sha256(repr(names).encode()).hexdigest()[:32]
    return f"{len(found)} files {sum(size for _, size, _ in found)} {digest}"


def _stat(file: Path) -> _Stat:
    found = file.stat()
    return str(file), found.st_size, found.st_mtime_ns


def _files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _named_in(index: Path) -> list[Path]:
    """Lists the files beside an index of Hamamatsu that its lines ``key=name`` name."""
    with index.open("rb") as stream:
        text = stream.read(_MOST_INDEX_BYTES).decode("utf-8", errors="replace")
    names = {line.partition("=")[2].strip() for line in text.splitlines() if "=" in line}
    # names alone: whoever wrote the index has no say over other folders
    return sorted(
        index.parent / name
        for name in names
        if name and Path(name).name == name and (index.parent / name).is_file()
    )


def dicom_candidates(folder: Path) -> list[Path]:
    """Lists what may be DICOM in a folder, by the names alone."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in (".dcm", "") and file.is_file())


@lru_cache(maxsize=4)
def _series_in(folder: Path, stats: tuple[_Stat, ...]) -> tuple[tuple[Path, ...], ...]:
    """Sorts the DICOM files of a folder by slide; kept while none changes, because each slide in it asks.

    Returns:
        The files of each series that is known; those of an unknown one are left out.
    """
    series = dicom_series(dicom_files(folder))
    return tuple(tuple(files) for name, files in series.items() if name)
