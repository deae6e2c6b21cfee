"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from .atomic_file import make_folder, temporary_name, write_file, writing
from .errors import OutputError


class OutputFolder(AbstractContextManager["OutputFolder"]):
    """A folder under a temporary name until ``finish``; without that the end of the block removes it.

    Args:
        path: The folder to write.
        replace: Whether a folder of that name may be replaced; the old one is removed when the new one is complete.

    Raises:
        OutputError: The disk does not take it.
    """

    def __init__(self, path: str | Path, *, replace: bool = True) -> None:
        self.path = Path(path)
        self.folder = temporary_name(self.path)
        """Where files are written until ``finish``."""
        self._replace = replace
        with writing(self.path):
            self.folder.mkdir()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Removes what was not finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OutputError):
            # the temporary name is gone, and would not tell the user which file it was
            error.args = (str(error).replace(str(self.folder), str(self.path)),)

    def add(self, name: str, content: bytes | str) -> Path:
        """Writes one file.

        Raises:
            OutputError: The disk does not take it.
        """
        file = self.folder / name
        write_file(file, content)
        return file

    def add_folder(self, name: str) -> Path:
        """Makes a folder within it.

        Raises:
            OutputError: The disk does not take it.
        """
        folder = self.folder / name
        make_folder(folder)
        return folder

    def finish(self) -> None:
        """Puts the folder in its place.

        Raises:
            OutputError: The disk does not take it, or another process wrote the folder meanwhile.
        """
        with writing(self.path):
            if not self._replace:
                self._take_free_name()
            elif self.path.exists():
                # a folder with content cannot be renamed over
                old = self.folder.with_suffix(".old")
                self.path.rename(old)
                try:
                    self.folder.rename(self.path)
                except OSError:
                    old.rename(self.path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                self.folder.rename(self.path)

    def _take_free_name(self) -> None:
        try:
            self.folder.rename(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise OutputError(
                f"{self.path}: exists already, because another process wrote it meanwhile; replace it with `overwrite=True`"
            ) from None
