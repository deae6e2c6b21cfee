"""What the sections of a configuration share: objects on the command line, and checks that name setting and value."""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

from tyro.constructors import PrimitiveConstructorSpec

from ..runtime.errors import PretrainError


def _object_from_words(words: list[str]) -> dict[str, Any]:
    values = json.loads(words[0])
    if not isinstance(values, dict):
        raise ValueError(f"{words[0]!r} is not a JSON object")
    return values


JsonObject = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_object_from_words,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
"""A dictionary that is given as one word of JSON."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raises PretrainError, naming setting and value, unless a condition holds; ``allowed`` says what the value must be."""
    if not condition:
        raise PretrainError(f"`{name}` is {value}; it must be {allowed}")


def require_choice(name: str, value: object, allowed: Any) -> None:
    """Raises PretrainError unless a setting is one of the words of a ``Literal``."""
    names = get_args(allowed)
    require(value in names, name, repr(value), f"one of {', '.join(names)}")


def require_share(name: str, value: float) -> None:
    """Raises PretrainError unless a setting is a fraction, 0 to 1."""
    require(0 <= value <= 1, name, value, "between 0 and 1")


def require_range(name: str, values: tuple[float, float], highest: float = 1.0) -> None:
    """Raises PretrainError unless a setting is two rising numbers above 0."""
    low, high = values
    require(0 < low <= high <= highest, name, values, f"two rising numbers above 0, at most {highest:g}")
