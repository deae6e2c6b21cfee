"""Standard output whose reader has gone or whose disk is full."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from .errors import OutputError


@contextmanager
def standard_output() -> Iterator[None]:
    """Flushes what the block prints; otherwise the interpreter would try at its exit, and only print a warning.

    Raises:
        OutputError: It cannot be written.
    """
    stream: Any = _Named(sys.stdout)
    with redirect_stdout(stream):
        yield
        stream.flush()


class _Named:
    """A stream whose errors say which one it is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._raising():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._raising():
            self._stream.flush()

    @contextmanager
    def _raising(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # what is left in the buffer would be written again at the interpreter's exit
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            raise OutputError(f"standard output: cannot be written ({error.strerror or error})") from error
