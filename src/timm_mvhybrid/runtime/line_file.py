"""Logs: lines that are in the file when ``write`` returns, each of them whole or absent."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from .atomic_file import writing


class LineFile(AbstractContextManager["LineFile"]):
    """Appends lines to a file.

    Nothing waits in a buffer: what is written survives whatever ends the process, and a line that the disk did not
    take is not tried again when the file is closed.

    Args:
        path: The file; made if there is none.

    Raises:
        OutputError: It cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with writing(self.path):
            self._file = self.path.open("ab+", buffering=0)
            self._starts_line = self._ends_with_line_break()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Closes the file; an error that is already being raised is the one to report."""
        if error is None:
            self.close()
        else:
            with suppress(OSError):
                self._file.close()

    def write(self, line: str) -> None:
        """Appends one line.

        Raises:
            OutputError: The disk does not take it; nothing of it remains.
        """
        # half a line that a killed process left stays a line of its own
        separator = "" if self._starts_line else "\n"
        content = f"{separator}{line}\n".encode()
        with writing(self.path, len(content)):
            start = os.fstat(self._file.fileno()).st_size
            num_written = 0
            try:
                while num_written < len(content):
                    num_written += self._file.write(content[num_written:])
            except OSError:
                # unless another process appended meanwhile
                if os.fstat(self._file.fileno()).st_size == start + num_written:
                    with suppress(OSError):
                        self._file.truncate(start)
                raise
        self._starts_line = True

    def close(self) -> None:
        """Closes the file.

        Raises:
            OutputError: The disk did not keep what it had accepted.
        """
        with writing(self.path):
            self._file.close()

    def _ends_with_line_break(self) -> bool:
        if self._file.seek(0, os.SEEK_END) == 0:
            return True
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"
