"""Configurations of two starts of a run → what changed between them, and whether the run may go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..runtime.errors import PretrainError
from .config import RunConfig


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any], recipe: type[RunConfig]) -> list[str]:
    """Compares what is learned in two configurations.

    Returns:
        Name, earlier and new value of each difference, as text.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and not _within(name, recipe.free)
    ]


def check_recipe(
    before: Mapping[str, Any], now: Mapping[str, Any], recipe: type[RunConfig], *, allow_changes: bool
) -> list[str]:
    """Decides whether a run may go on.

    Args:
        before: Configuration of the run so far.
        now: Configuration of this start.
        recipe: The kind of configuration, which knows what is free to change and what decides the architecture.
        allow_changes: Whether the recipe may change; the architecture never may.

    Raises:
        PretrainError: The recipe changed and may not, or the architecture did.
    """
    changes = find_changes(before, now, recipe)
    architecture = [change for change in changes if _within(change.split()[0], recipe.architecture)]
    if architecture:
        raise PretrainError(
            f"the run that is there has another architecture ({'; '.join(architecture)}); choose another output, and "
            "start from its weights by model.weights if they fit"
        )
    if changes and not allow_changes:
        raise PretrainError(
            f"the run that is there has another recipe ({'; '.join(changes)}); restore it, allow the change by "
            "allow_changes=True, or choose another output"
        )
    return changes


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        # arguments of the model are one value: which are there is part of it
        if isinstance(value, Mapping) and f"{prefix}{name}" != "model.arguments":
            leaves += _leaves(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
