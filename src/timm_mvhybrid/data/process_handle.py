"""Files that each process opens for itself, so that sources survive forks and pickles."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from typing import Any


class ProcessHandle(ABC):
    """A file whose handle is opened on first use in each process and left out of pickles."""

    _handle: Any = None
    _process = -1

    @abstractmethod
    def _open(self) -> Any:
        """Opens the file; what it returns has a method ``close``."""

    @property
    def handle(self) -> Any:
        """The library's object of this process."""
        if self._handle is None or self._process != os.getpid():
            # handles hold file positions and caches that forked processes must not share
            self.close()
            self._handle = self._open()
            self._process = os.getpid()
            # otherwise tiffslide leaves its file open, and ``__del__`` would run after the modules that it needs are
            # gone
            self._close_handle = weakref.finalize(self, self._handle.close)
        return self._handle

    def close(self) -> None:
        """Closes the handle; the next access opens it again."""
        if self._handle is not None:
            self._close_handle()
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the handle out of pickles."""
        return {**self.__dict__, "_handle": None, "_close_handle": None}
