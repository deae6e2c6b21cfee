"""What the commands print: summaries on stdout, one line a problem on stderr, and a stdout whose reader has gone."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from ..runtime.errors import OutputError, printable
from .flags import Flags, in_flags


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


_flags: Flags = {}
"""Of the command that runs."""


@contextmanager
def naming(flags: Flags) -> Iterator[None]:
    """Names parameters by these flags, in all that is said in the block."""
    global _flags
    before, _flags = _flags, flags
    try:
        yield
    finally:
        _flags = before


def worded(message: str) -> str:
    """Turns a message of the library into one of the command that runs: its flags in place of parameters."""
    return in_flags(message, _flags)


def report(summary: dict[str, Any]) -> None:
    """Prints a summary: JSON into a pipe, lines on a terminal."""
    if not sys.stdout.isatty():
        print(json.dumps(summary, ensure_ascii=False))
        return
    for name, value in summary.items():
        for line in value if isinstance(value, list | tuple) else [value]:
            print(printable(f"{name}: {line}"))


def say(message: str) -> None:
    """Prints one line on stderr; under torchrun it says whose.

    Args:
        message: Any text; parameters in backticks become flags, line breaks spaces, and what would steer the terminal is
            escaped.
    """
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(rank + printable(" ".join(worded(message).split())), file=sys.stderr)


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal what a command is at; yields what changes the text."""
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    with console.status(text) as shown:
        yield shown.update


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Prints this package's warnings in one line; those that point to other packages stay as Python shows them.

    So a user sees from the path that such a warning is of a dependency, and nothing to be done about here.
    """
    package = Path(__file__).parents[1]

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if Path(filename).is_relative_to(package):
            say(f"warning: {message}")
        else:
            show_others(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        show_others, warnings.showwarning = warnings.showwarning, show
        yield
