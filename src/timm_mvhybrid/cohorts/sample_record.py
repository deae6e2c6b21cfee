"""What a prepared sample was made of: a JSON file beside it, by which the same command finds that it is done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from ..runtime.atomic_file import write_file
from ..runtime.codec import encode, finite
from ..runtime.digest import file_fingerprint, file_sha256
from ..runtime.errors import DataError
from ..runtime.provenance import installed_versions

_PACKAGES = (
    *("anndata", "h5py", "numpy", "pandas", "pillow", "pyarrow", "scanpy", "scipy"),
    *("openslide-python", "openslide-bin", "tiffslide"),
)
_REMEDY = "choose another `output` or `sample_id`, or replace it with `overwrite=True`"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides how a sample comes out: options and the content of input files.

    Attributes:
        options: By name, as JSON holds them; paths are cut to their names.
        inputs: Path of each input below the folder given → a short hash of its content.
    """

    options: dict[str, Any]
    inputs: dict[str, str]

    @staticmethod
    def of(options: Mapping[str, Any], files: Sequence[Path]) -> Recipe:
        """Collects options and files, without reading large files whole.

        Raises:
            DataError: If a file is missing.
        """
        for file in files:
            if not file.is_file():
                raise DataError(f"{file}: no such file")
        return Recipe(
            options=finite(encode(dict(options), path=lambda path: path.name)),
            inputs={name: file_fingerprint(file) for name, file in _named(files).items()},
        )

    def differences(self, other: Recipe) -> list[str]:
        """Says what this recipe has otherwise than another, in words."""
        found = [
            f"`{name}={self.options.get(name)!r}` instead of {other.options.get(name)!r}"
            for name in dict.fromkeys([*self.options, *other.options])
            if self.options.get(name) != other.options.get(name)
        ]
        for name in sorted({*self.inputs, *other.inputs}):
            if self.inputs.get(name) != other.inputs.get(name):
                found.append(f"another {name} than there is now")
        return found


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """The record of one sample.

    Attributes:
        path: The JSON file.
        recipe: What it is made of.
        is_complete: Whether its files are all there; False was written before the first of them got its name.
        summary: Facts about what was written.
    """

    path: Path
    recipe: Recipe
    is_complete: bool
    summary: Mapping[str, Any]


State = Literal["new", "unfinished", "complete"]


def check_record(
    path: Path, recipe: Recipe, outputs: Iterable[Path], *, overwrite: bool
) -> SampleRecord | None:
    """Finds out whether a sample is done already.

    Args:
        path: Where its record belongs.
        recipe: What it shall be made of.
        outputs: Its other files.
        overwrite: Whether one that was made otherwise may be replaced.

    Returns:
        The record if the sample is complete and made of just this; None if it is to be made.

    Raises:
        DataError: If it was made otherwise, or its files are not from here, and may not be replaced.
    """
    outputs = list(outputs)
    record = _read_record(path)
    if record is None:
        foreign = next((file for file in outputs if file.exists()), None)
        if foreign is not None and not overwrite:
            raise DataError(f"{foreign}: exists already, and was not written by 'prepare'; {_REMEDY}")
        return None
    if overwrite or not record.is_complete:
        return None
    differences = record.recipe.differences(recipe)
    if differences:
        raise DataError(f"{path}: the sample was prepared with {', '.join(differences)}; {_REMEDY}")
    # a file that somebody removed is made again
    return record if all(file.is_file() for file in outputs) else None


def write_record(
    path: Path, recipe: Recipe, files: Sequence[Path], summary: Mapping[str, Any], *, is_complete: bool
) -> None:
    """Writes a record, whole or not at all; raises OutputError if the disk does not take it."""
    content = {
        "is_complete": is_complete,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **finite(encode(dict(summary), path=lambda path: path.name)),
        **dataclasses.asdict(recipe),
        "sha256": {name: file_sha256(file) for name, file in _named(files).items()} if is_complete else {},
        "versions": installed_versions(_PACKAGES),
    }
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _read_record(path: Path) -> SampleRecord | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recipe = Recipe(options=dict(content["options"]), inputs=dict(content["inputs"]))
        return SampleRecord(
            path=path, recipe=recipe, is_complete=content["is_complete"] is True, summary=content
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a record of a prepared sample ({error}); remove it, and prepare again"
        ) from error


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """Names files by their path below the folder that they have in common, or by their name if that is unique."""
    names = [file.name for file in files]
    return {
        file.name if names.count(file.name) == 1 else "/".join(file.absolute().parts[-3:]): file
        for file in dict.fromkeys(files)
    }
