"""What the commands print: summaries on stdout, one line a problem on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from ..runtime.printable import printable


def report(summary: dict[str, Any]) -> None:
    """Prints a summary: JSON into a pipe, lines on a terminal.

    Args:
        summary: Values by name.
    """
    if not sys.stdout.isatty():
        print(json.dumps(summary, ensure_ascii=False))
        return
    for name, value in summary.items():
        for line in value if isinstance(value, list | tuple) else [value]:
            print(printable(f"{name}: {line}"))


def say(message: str) -> None:
    """Prints one line on stderr.

    Args:
        message: Any text; its line breaks become spaces, and what would steer the terminal is escaped.
    """
    print(printable(" ".join(message.split())), file=sys.stderr)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning in one line, in place of `warnings.showwarning`.

    Args:
        message: The warning.
    """
    say(f"warning: {message}")
