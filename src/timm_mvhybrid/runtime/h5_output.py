"""An HDF5 file that appears whole or not at all, even where the disk fills up while HDF5 writes."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from pathlib import Path

import h5py

from .atomic_file import OutputFile


class H5Output(AbstractContextManager["H5Output"]):
    """An HDF5 file under a temporary name until ``finish``; without that the end of the block removes it.

    HDF5 writes through an ``OutputFile``: if HDF5 itself meets a full disk, it fails again whenever the file is closed,
    and ends the process with a segmentation fault.

    Args:
        path: The file to write; its folder exists.
        replace: Whether a file of that name may be replaced.

    Raises:
        OutputError: The folder takes no files.
    """

    def __init__(self, path: str | Path, *, replace: bool = True) -> None:
        self._output = OutputFile(path, replace=replace)
        self.file = h5py.File(self._output, "w")
        """The open file, for h5py's calls."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Removes what was not finished."""
        try:
            # where the disk refused the data, HDF5 does not find what it wrote
            with suppress(Exception):
                self.file.close()
            # HDF5's own message is then not what happened
            if isinstance(error, Exception):
                self.check()
        finally:
            self._output.__exit__(kind, error, traceback)

    def check(self) -> None:
        """Raises what earlier calls met; long work calls it now and then.

        Raises:
            OutputError: The disk did not take what they wrote.
        """
        self._output.check()

    def settle(self) -> None:
        """Closes the file and waits until the disk has it, so that whatever can fail in ``finish`` fails here.

        Raises:
            OutputError: The disk did not take it.
        """
        self.file.close()
        self._output.settle()

    def finish(self) -> None:
        """Closes the file and gives it its name.

        Raises:
            OutputError: The disk did not take it, or another process wrote a file of that name that may not be
                replaced.
        """
        self.settle()
        self._output.finish()
