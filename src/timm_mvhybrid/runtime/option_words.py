"""Options that are spelled in one word on the command line, such as ``auto|none|N``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec


def word(metavar: str, read: Callable[[str], Any], write: Callable[[Any], str] = str) -> Any:
    """Tells the command line how a value is spelled in one word."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


def comma_separated(metavar: str) -> Any:
    """Tells the command line that texts are given in one word, separated by commas."""
    return word(metavar, lambda text: tuple(part.strip() for part in text.split(",")), ",".join)
