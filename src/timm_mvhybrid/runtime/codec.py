"""Frozen dataclasses of results ↔ strict JSON, in which a number that does not exist is null."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from .errors import EvaluationError


def encode(value: Any) -> Any:
    """Turns a result into what JSON can hold.

    Args:
        value: A dataclass, or what its fields hold: tuples, dictionaries with string keys, strings, numbers, None.

    Returns:
        Lists, dictionaries and scalars; NaN and infinite numbers become None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def decode(kind: Any, value: Any, where: str) -> Any:
    """Turns JSON back into a dataclass, by the types of its fields.

    Args:
        kind: The type wanted.
        value: What `json.loads` gave.
        where: Names the place in messages.

    Returns:
        The value; null becomes NaN where a float is wanted, and None where None is allowed.

    Raises:
        EvaluationError: If the value is not of that type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return decode(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise EvaluationError(f"{where}: must be an object, not {value!r:.60}")
        hints = get_type_hints(kind)
        names = {field.name for field in dataclasses.fields(kind)}
        if set(value) != names:
            wrong = ", ".join(sorted(set(value) ^ names))
            raise EvaluationError(f"{where}: missing or unknown: {wrong}; was it written by another version?")
        fields = {name: decode(hints[name], value[name], f"{where}.{name}") for name in names}
        make: Any = kind
        return make(**fields)
    if origin is tuple:
        if not isinstance(value, list):
            raise EvaluationError(f"{where}: must be a list, not {value!r:.60}")
        return tuple(decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise EvaluationError(f"{where}: must be an object, not {value!r:.60}")
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        if value is None:
            return math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    elif not isinstance(kind, type) and value in arguments:
        return value
    raise EvaluationError(f"{where}: {value!r:.60} is not what belongs there")


def dump(value: Any) -> str:
    """Encodes a dataclass as one line of JSON for each field, and ends it with a newline.

    Args:
        value: The dataclass.

    Returns:
        Strict JSON.
    """
    items = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(item, ensure_ascii=False, allow_nan=False)}"
        for key, item in encode(value).items()
    )
    return f"{{\n{items}\n}}\n"
