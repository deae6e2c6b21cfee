"""Whether an export may take a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..runtime.atomic_file import check_unclaimed
from .errors import ExportError


def check_folder(output: Path, *, overwrite: bool, known_files: Iterable[str]) -> None:
    """Finds out whether a folder can be written, before time is spent on its content.

    Raises:
        ExportError: The parent is missing or not writable, or the folder exists and may not be replaced.
        OutputError: Another process writes it.
    """
    if not output.parent.is_dir():
        raise ExportError(f"{output}: the folder {output.parent} does not exist; create it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ExportError(f"{output}: the folder {output.parent} is not writable; choose another `output`")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise ExportError(f"{output}: exists and is not a folder; choose another `output`")
    content = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
    foreign = sorted(content - set(known_files))
    if foreign:
        raise ExportError(
            f"{output}: holds other files ({', '.join(foreign[:3])}), which an export never deletes; choose another `output`"
        )
    if content and not overwrite:
        raise ExportError(f"{output}: exists already; replace it with `overwrite=True`")
    check_unclaimed(output)
