"""Files → a folder that is either complete or absent, readable as the umask allows."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from .errors import ExportError


def check_folder(output: Path, *, overwrite: bool, known_files: Iterable[str]) -> None:
    """Finds out whether a folder can be written, before time is spent on its content.

    Args:
        output: The folder to write.
        overwrite: Whether an existing one may be replaced.
        known_files: Files that a folder to be replaced may hold.

    Raises:
        ExportError: The parent is missing or not writable, or the folder exists and may not be replaced.
    """
    if not output.parent.is_dir():
        raise ExportError(f"{output}: the folder {output.parent} does not exist; create it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ExportError(f"{output}: the folder {output.parent} is not writable; choose another --output")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise ExportError(f"{output}: exists and is no folder; choose another --output")
    content = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
    foreign = sorted(content - set(known_files))
    if foreign:
        raise ExportError(
            f"{output}: holds other files ({', '.join(foreign[:3])}), which an export never deletes; choose another --output"
        )
    if content and not overwrite:
        raise ExportError(f"{output}: exists already; replace it with --overwrite")


class FolderWriter:
    """Collects files in a temporary folder beside the output and renames it when all are written.

    Used as a context manager; leaving it without `finish`, by whatever exception, removes the temporary folder.

    Args:
        output: The folder to write.

    Raises:
        ExportError: The disk does not take it.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
        try:
            self._temporary.mkdir()
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> FolderWriter:
        """Returns the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Removes what was not finished."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def add(self, name: str, content: bytes | str) -> Path:
        """Writes one file.

        Args:
            name: Its name.
            content: Its bytes, or text.

        Returns:
            Its path for now.

        Raises:
            ExportError: The disk does not take it.
        """
        path = self._temporary / name
        try:
            with path.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        return path

    @property
    def folder(self) -> Path:
        """The temporary folder, for a look at the files before they count."""
        return self._temporary

    def finish(self) -> None:
        """Puts the folder in its place.

        Raises:
            ExportError: The disk does not take it.
        """
        try:
            if self.output.exists():
                # a folder with content cannot be renamed over; the old one leaves only when the new one is complete
                old = self._temporary.with_suffix(".old")
                os.rename(self.output, old)
                try:
                    os.rename(self._temporary, self.output)
                except OSError:
                    os.rename(old, self.output)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(self._temporary, self.output)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ExportError:
        return ExportError(f"{self.output}: writing failed ({error.strerror or error})")
