"""Folders or a manifest (JSON) → cohorts of a fine-tuning run: where each is, how often it is drawn, what it measures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..runtime.errors import DataError
from ..runtime.names import unique_positions

Platform = Literal["auto", "spots", "transcripts"]
Normalise = Literal["auto", "cpm", "area"]

_TEXTS = ("panel", "task", "counts_layer")
_PATHS = ("path", "studies", "genes")


@dataclass(frozen=True, kw_only=True)
class CohortEntry:
    """One cohort: samples of one platform that measure the same genes.

    Attributes:
        path: A folder in HEST's layout: ``patches/`` and ``adata/`` (spots), or ``patches/`` and ``transcripts/``.
        weight: How often a patch is drawn, relative to cohorts of weight 1.
        panel: Name of its panel; cohorts of one name share heads, genes and standardisation. The folder's name by default.
        platform: Whether counts are of spots (Visium) or single transcripts (Xenium); "auto" looks which folder there is.
        task: One of several tasks in the folder.
        genes: JSON with the genes to predict, or how many of the most variable ones; None takes all of a panel of
            transcripts, and the run's number of those of spots.
        studies: CSV with sample_id, study and patient; ``studies.csv`` in the folder by default.
        normalise: "cpm", "area", or "auto": by area where fewer than 1,000 genes are measured.
        counts_layer: Layer of each h5ad that holds raw counts, or ``raw``; X by default.
        spot_area_um2: Area of a spot, for ``normalise="area"``.
        um_per_px: Size of a level-0 px of the image that transcripts lie on; read from the data by default.

    Raises:
        DataError: If a value is not one of these.
    """

    path: Path
    weight: float = 1.0
    panel: str | None = None
    platform: Platform = "auto"
    task: str | None = None
    genes: Path | int | None = None
    studies: Path | None = None
    normalise: Normalise = "auto"
    counts_layer: str | None = None
    spot_area_um2: float | None = None
    um_per_px: float | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "spot_area_um2", "um_per_px"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (value is None and name != "weight") and not (number and 0 < value < math.inf):
                raise DataError(f"{self.path}: `{name}` is {value!r}; give a number above 0")
        for name, kind in (("platform", Platform), ("normalise", Normalise)):
            if getattr(self, name) not in get_args(kind):
                raise DataError(
                    f"{self.path}: `{name}` is {getattr(self, name)!r}; choose from {', '.join(get_args(kind))}"
                )
        wrong = isinstance(self.genes, bool) or (isinstance(self.genes, int) and self.genes < 1)
        if wrong or not isinstance(self.genes, Path | int | None):
            raise DataError(f"{self.path}: `genes` is {self.genes!r}; give a file, or a number of at least 1")

    @property
    def panel_name(self) -> str:
        """Name of the panel."""
        return self.panel or self.task or self.path.resolve().name


def open_entries(roots: Sequence[str | Path]) -> list[CohortEntry]:
    """Turns what a run is given into cohorts.

    Args:
        roots: Folders of cohorts, or manifests: JSON ``{"cohorts": [...]}`` with a path or an object of the fields of
            ``CohortEntry`` each; relative paths start at the manifest's folder.

    Returns:
        The cohorts, in their order.

    Raises:
        DataError: If there is none, one occurs twice, a manifest cannot be read, or a key or value is unknown.
    """
    entries: list[CohortEntry] = []
    for root in map(Path, roots):
        if root.suffix.lower() == ".json":
            entries += _read_manifest(root)
        elif root.is_dir():
            entries.append(CohortEntry(path=root))
        else:
            raise DataError(f"{root}: no such folder; give the folder of a cohort, or a manifest (.json)")
    if not entries:
        raise DataError("no cohort is given; name a folder or a manifest")
    places = [f"{entry.path.resolve()} {entry.task or ''}".strip() for entry in entries]
    unique_positions("the cohorts", "folder", places, "give each once, with the weight it shall have")
    return entries


def _read_manifest(file: Path) -> list[CohortEntry]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read as JSON ({getattr(error, 'strerror', None) or error})"
        ) from error
    cohorts = content.get("cohorts") if isinstance(content, dict) else None
    if not isinstance(cohorts, list) or not cohorts:
        raise DataError(f'{file}: must hold {{"cohorts": [...]}} with at least one cohort')
    return [_entry(file, number, item) for number, item in enumerate(cohorts)]


def _entry(file: Path, number: int, item: Any) -> CohortEntry:
    where = f"{file}: cohort {number}"
    if isinstance(item, str):
        item = {"path": item}
    if not isinstance(item, dict) or not isinstance(item.get("path"), str):
        raise DataError(f'{where} must be a path, or an object with "path", not {item!r}')
    known = [field.name for field in dataclasses.fields(CohortEntry)]
    unknown = [key for key in item if key not in known]
    if unknown:
        raise DataError(f"{where} has the unknown key '{unknown[0]}'; known are {', '.join(known)}")
    for key in (*_TEXTS, "studies"):
        if not isinstance(item.get(key), str | None):
            raise DataError(f"{where}: '{key}' is {item[key]!r}; give text")
    paths = {key: file.parent / item[key] for key in _PATHS if isinstance(item.get(key), str)}
    try:
        entry = CohortEntry(**{**item, **paths})
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if not entry.path.is_dir():
        raise DataError(f"{where}: {entry.path}: no such folder")
    return entry
