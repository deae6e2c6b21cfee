"""Dataclasses ↔ JSON, by the types of their fields: results, whole and strict, and settings, of which any part may be given."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import EvaluationError, PretrainError, TimmMVHybridError

_T = TypeVar("_T")


def encode(value: Any, *, path: Callable[[Path], str] = str) -> Any:
    """Turns a value into what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name), path=path) for field in _fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item, path=path) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, path=path) for item in value]
    return path(value) if isinstance(value, Path) else value


def dump(value: Any) -> str:
    """Encodes a dataclass or mapping as one line of JSON for each field, and ends it with a newline.

    Returns:
        Strict JSON, in which numbers that do not exist (NaN) or are infinite are null.
    """
    items = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(finite(item), ensure_ascii=False, allow_nan=False)}"
        for key, item in encode(value).items()
    )
    return f"{{\n{items}\n}}\n"


def decode(kind: Any, value: Any, where: str) -> Any:
    """Turns JSON back into what ``dump`` was given.

    Returns:
        The value; null becomes NaN where a float is wanted, and None where None is allowed.

    Raises:
        EvaluationError: The value is not of that type.
    """
    return _Decoder(where, settings=False).decode(kind, value, "")


def update(settings: _T, values: Mapping[str, Any], where: str = "the configuration") -> _T:
    """Replaces settings by values of a file.

    Args:
        settings: A dataclass, sections of which are dataclasses; left as it is.
        values: New values by name, nested like the settings, as JSON or YAML give them; fields that are not named stay.
        where: Where the values are from, for messages.

    Raises:
        PretrainError: A name is unknown, or a value of the wrong type or outside its range.
    """
    found: _T = _Decoder(where, settings=True).update(settings, values, "")
    return found


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Values by the types of fields; what is wrong is named by file, place and value, in an error of whoever reads."""

    where: str
    settings: bool

    @property
    def error(self) -> type[TimmMVHybridError]:
        return PretrainError if self.settings else EvaluationError

    def decode(self, kind: Any, value: Any, name: str) -> Any:
        origin, arguments = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if origin is Annotated:
            return self.decode(arguments[0], value, name)
        if origin in (Union, types.UnionType):
            if value is None and types.NoneType in arguments:
                return None
            return self._first_that_fits([a for a in arguments if a is not types.NoneType], value, name)
        if dataclasses.is_dataclass(kind):
            return self._whole(kind, self._mapping(value, name), name)
        if origin is Literal:
            # True equals 1, and is not it
            if any(value == allowed and type(value) is type(allowed) for allowed in arguments):
                return value
            raise self._wrong(name, value, f"one of {', '.join(map(str, arguments))}")
        if origin is tuple and isinstance(value, list | tuple):
            kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) == len(value):
                return tuple(
                    self.decode(kind, item, f"{name}[{index}]")
                    for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
                )
        if origin is dict:
            items = self._mapping(value, name).items()
            return {key: self.decode(arguments[1], item, f"{name}.{key}") for key, item in items}
        found = self._scalar(kind, value) if origin is None else None
        if found is None:
            raise self._wrong(name, value, f"of type {getattr(kind, '__name__', str(kind))}")
        return found

    def _first_that_fits(self, kinds: Sequence[Any], value: Any, name: str) -> Any:
        """Decodes by the first of several types that takes the value; the last one says what is wrong."""
        for kind in kinds[:-1]:
            try:
                return self.decode(kind, value, name)
            except self.error:
                continue
        return self.decode(kinds[-1], value, name)

    def update(self, settings: Any, values: Mapping[str, Any], name: str) -> Any:
        hints = get_type_hints(type(settings), include_extras=True)
        known = [field.name for field in _fields(settings)]
        changes: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {_join(name, close[0])}?" if close else f"there are {', '.join(known)}"
                raise self.error(f"{self.where}: there is no setting {_join(name, key)}; {hint}")
            old, place = getattr(settings, key), _join(name, key)
            if dataclasses.is_dataclass(old):
                changes[key] = self.update(old, self._mapping(value, place), place)
            else:
                changes[key] = self.decode(hints[key], value, place)
        try:
            return dataclasses.replace(settings, **changes)
        except self.error as error:
            raise self.error(f"{self.where}: {error}") from error

    def _whole(self, kind: Any, values: Mapping[str, Any], name: str) -> Any:
        names = {field.name for field in _fields(kind)}
        if set(values) != names:
            wrong = ", ".join(sorted(set(values) ^ names))
            place = f" in {name}" if name else ""
            raise self.error(
                f"{self.where}: missing or unknown{place}: {wrong}; was it written by another version?"
            )
        hints = get_type_hints(kind, include_extras=True)
        return kind(**{key: self.decode(hints[key], values[key], _join(name, key)) for key in names})

    def _scalar(self, kind: Any, value: Any) -> Any:
        """Converts what JSON and YAML cannot say; None is a value that does not fit."""
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind is float and value is None and not self.settings:
            return math.nan
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is float and isinstance(value, str) and self.settings:
            # YAML reads 1e-6 as a text
            try:
                return float(value)
            except ValueError:
                return None
        fits = isinstance(kind, type) and isinstance(value, kind)
        return value if fits and (kind is bool or not isinstance(value, bool)) else None

    def _mapping(self, value: Any, name: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object of names and values")
        return value

    def _wrong(self, name: str, value: Any, wanted: str) -> TimmMVHybridError:
        return self.error(f"{self.where}: {name or 'it'} is {value!r:.60}; it must be {wanted}")


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def finite(value: Any) -> Any:
    """Makes numbers that do not exist (NaN) or are infinite null, in what ``encode`` gave."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
