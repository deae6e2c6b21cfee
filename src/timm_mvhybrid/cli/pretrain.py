"""``timm-mvhybrid pretrain``: its place among the commands; its settings are parsed where they are declared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pretrain a backbone by DINOv2's self-supervision; its --help lists all settings."""

    def run(self) -> int | None:
        """Runs the command without any setting."""
        code: int | None = parse_pretrain(()).run()
        return code


def parse_pretrain(arguments: Sequence[str]) -> Any:
    """Parses the command with its settings, whose defaults depend on ``--preset`` and ``--config``.

    Args:
        arguments: Arguments behind ``pretrain``.

    Returns:
        The command.

    Raises:
        PretrainError: The file of ``--config`` cannot be used, or a setting is outside its range.
    """
    from ..pretrain.command import parse

    return parse(arguments, "timm-mvhybrid pretrain")
