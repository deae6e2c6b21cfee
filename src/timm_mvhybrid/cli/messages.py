"""What the commands print: summaries on stdout, one line a problem on stderr."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..runtime.printable import printable


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
        message: Any text; its line breaks become spaces, and what would steer the terminal is escaped.
    """
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(rank + printable(" ".join(message.split())), file=sys.stderr)


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
