"""Names that must be unique → the position of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import DataError


def unique_positions(where: Path | str, noun: str, names: Sequence[str], remedy: str) -> dict[str, int]:
    """Looks up names that must be unique.

    Raises:
        DataError: If a name occurs twice.
    """
    positions = {name: index for index, name in enumerate(names)}
    if len(positions) < len(names):
        # each name has the place where it is last
        twice = next(name for index, name in enumerate(names) if positions[name] != index)
        raise DataError(f"{where}: {noun} '{twice}' occurs more than once; {remedy}")
    return positions
