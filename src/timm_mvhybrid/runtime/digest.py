"""Identity of files: their sha256, or a short hash of size and samples where they are large."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

_NUM_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


def file_sha256(path: str | Path) -> str:
    """Computes the sha256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_files(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Hashes input files: name → SHA-256 in hex, sorted by name."""
    names = {}
    for file in files:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        names[name] = file_sha256(file)
    return dict(sorted(names.items()))


def file_fingerprint(path: Path) -> str:
    """Tells one file from another without reading gigabytes: by its size and by evenly spread samples.

    Names and times do not count, so that copies are the same file. A file up to 1 MiB is read whole.

    Returns:
        32 hexadecimal digits.
    """
    with path.open("rb") as stream:
        return stream_fingerprint(stream)


def stream_fingerprint(stream: BinaryIO) -> str:
    """Computes ``file_fingerprint`` of an open file."""
    size = stream.seek(0, io.SEEK_END)
    found = hashlib.sha256(str(size).encode())
    last = max(size - _SAMPLE_BYTES, 0)
    for index in range(_NUM_SAMPLES):
        stream.seek(last * index // (_NUM_SAMPLES - 1))
        found.update(stream.read(_SAMPLE_BYTES))
    return found.hexdigest()[:32]


def path_sha256(path: Path) -> str:
    """Computes the sha256 of a file, or one of all files of a folder and of their names in it."""
    return _of_folder(path, file_sha256) if path.is_dir() else file_sha256(path)


def path_fingerprint(path: Path) -> str:
    """Computes ``file_fingerprint`` of a file, or one of all files of a folder and of their names in it."""
    return _of_folder(path, file_fingerprint)[:32] if path.is_dir() else file_fingerprint(path)


def _of_folder(folder: Path, digest: Callable[[Path], str]) -> str:
    return digest_of_files(folder, sorted(file for file in folder.rglob("*") if file.is_file()), digest)


def digest_of_files(folder: Path, files: Sequence[Path], digest: Callable[[Path], str]) -> str:
    """Joins the digests of files, and their names in a folder that holds them all, to a sha256 in hexadecimal digits."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(folder).as_posix()}\n{digest(file)}\n".encode())
    return found.hexdigest()
