"""Patches → one hash of what they are, by which embeddings are found again."""

from __future__ import annotations

import hashlib

from ..runtime.digest import file_sha256
from .source import PatchSource


def source_digest(source: PatchSource) -> str:
    """Hashes the content of a source: its file, or its files and their names, and which patches are taken of it.

    Args:
        source: The patches.

    Returns:
        SHA-256 in hex.
    """
    if source.path.is_dir() and source.paths is not None:
        found = hashlib.sha256()
        for name in source.paths:
            found.update(f"{name}\n{file_sha256(source.path / name)}\n".encode())
        return found.hexdigest()
    found = hashlib.sha256(file_sha256(source.path).encode())
    found.update(f"{len(source)} {source.patch_size_px} {source.resolution_um_per_px}".encode())
    if source.coords is not None:
        found.update(source.coords.tobytes())
    return found.hexdigest()
