"""What every task's result holds: models, paired comparisons, provenance, and its way to a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...probes.resampling import PairedComparison
from ...runtime.atomic_file import write_file
from ...runtime.codec import dump
from ...runtime.provenance import ModelRecord, Provenance

SCHEMA_VERSION = 1
"""Raised whenever a field changes its meaning."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every task's result has.

    Args:
        dataset: Name of the data, the input folder's or file's by default.
        models: The backbones in the order given.
        comparisons: Every later model against the first.
        provenance: Where the numbers come from.
        notes: What a reader has to know, one sentence each, such as genes that are constant in a fold.
    """

    task: ClassVar[str] = ""

    dataset: str
    models: tuple[ModelRecord, ...]
    comparisons: tuple[PairedComparison, ...]
    provenance: Provenance
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Encodes the result.

        Returns:
            Strict JSON, one line for each field.
        """
        body = dump(self)
        return f'{{\n"schema": {SCHEMA_VERSION},\n"task": {json.dumps(self.task)},\n{body[2:]}'

    def write(self, path: str | Path) -> None:
        """Writes the file, complete or not at all.

        Args:
            path: Where, such as `DIR/results.json`.

        Raises:
            OutputError: If the disk does not take it.
        """
        write_file(path, self.to_json())
