"""The summary that a command prints, where its reader has gone or its disk is full."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import OutputError


@contextmanager
def standard_output() -> Iterator[None]:
    """Hands over what the block prints; without it the interpreter would try at its end, and only grumble.

    Raises:
        OutputError: Nobody takes it.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError:
        _check()
        raise


def _check() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        # what is left in the buffer would be tried again at the interpreter's end
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise OutputError(f"standard output: cannot be written ({error.strerror or error})") from error
