"""Configuration ↔ JSON: what a run was told, as a file that the next run can be told again."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..runtime.errors import PretrainError

Config = TypeVar("Config")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Lays a configuration out as what JSON knows.

    Args:
        config: A configuration.

    Returns:
        Nested dictionaries; paths are texts, tuples lists.
    """
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return values


def read_config_file(path: Path) -> dict[str, Any]:
    """Reads settings from a file.

    Args:
        path: JSON, or YAML by its suffix .yaml or .yml.

    Returns:
        Nested dictionaries; any part of a configuration.

    Raises:
        PretrainError: The file cannot be read, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PretrainError(f"{path}: the configuration cannot be read ({error})") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        try:
            import yaml
        except ImportError as error:
            raise PretrainError(
                f"{path}: reading YAML needs PyYAML: pip install 'timm-mvhybrid[pretrain]', or write it as JSON"
            ) from error
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise PretrainError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    else:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise PretrainError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise PretrainError(f"{path}: holds no mapping of settings, but {type(values).__name__}")
    return values


def update_config(config: Config, values: Mapping[str, Any], origin: str = "the configuration") -> Config:
    """Replaces fields of a configuration.

    Args:
        config: What it was; left as it is.
        values: New values by name, nested like the configuration; fields that are not named stay.
        origin: Where the values are from, for messages.

    Returns:
        The new configuration.

    Raises:
        PretrainError: A name is unknown, or a value of the wrong type or outside its range.
    """
    return _update(config, values, origin, "")


def _update(config: Any, values: Mapping[str, Any], origin: str, prefix: str) -> Any:
    types = get_type_hints(type(config), include_extras=True)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            close = difflib.get_close_matches(name, types, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else f"; there are {', '.join(types)}"
            raise PretrainError(f"{origin}: there is no setting {prefix}{name}{hint}")
        old = getattr(config, name)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise PretrainError(f"{origin}: {prefix}{name} must be a mapping of settings, not {value!r}")
            changes[name] = _update(old, value, origin, f"{prefix}{name}.")
        else:
            changes[name] = _convert(value, types[name], origin, f"{prefix}{name}")
    try:
        return dataclasses.replace(config, **changes)
    except PretrainError as error:
        raise PretrainError(f"{origin}: {error}") from error


def _convert(value: Any, wanted: Any, origin: str, name: str) -> Any:
    kind = get_origin(wanted)
    if kind is Annotated:
        return _convert(value, get_args(wanted)[0], origin, name)
    if kind in (Union, UnionType):
        options = get_args(wanted)
        if value is None and NoneType in options:
            return None
        return _convert(value, next(option for option in options if option is not NoneType), origin, name)
    if kind is Literal:
        if value in get_args(wanted):
            return value
        raise PretrainError(f"{origin}: {name} is {value!r}; it must be one of {', '.join(get_args(wanted))}")
    if kind is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        inner = get_args(wanted)
        if inner[-1] is Ellipsis:
            return tuple(_convert(item, inner[0], origin, name) for item in value)
        if len(value) == len(inner):
            return tuple(_convert(item, kind, origin, name) for item, kind in zip(value, inner, strict=True))
    if kind is dict and isinstance(value, Mapping):
        return dict(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if wanted is float and isinstance(value, str):
        # YAML reads 1e-6 as a text
        try:
            return float(value)
        except ValueError:
            pass
    if (
        kind is None
        and isinstance(wanted, type)
        and isinstance(value, wanted)
        and not (wanted is int and isinstance(value, bool))
    ):
        return value
    label = getattr(wanted, "__name__", str(wanted))
    raise PretrainError(f"{origin}: {name} is {value!r}; it must be of type {label}")
