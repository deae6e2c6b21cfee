"""A sample as HEST-1k distributes it (``wsis/``, ``st/``, ``metadata/``) → spots, and whose they are.

The size of a px is ``pixel_size_um_estimated``, which HEST derived from the spots or the alignment, and which HEST cuts its
own patches by. ``pixel_size_um_embedded`` is what the original image stated, and is reported only: of the 357 samples of
HEST_v1_1_0.csv that have one, it is more than 3 % off in 238; most of these hold what 72, 96 or 300 dpi come to, just 1, or
the 0.2125 of a Xenium morphology image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..data import read_csv
from ..runtime.errors import DataError
from .counts import read_counts
from .spot_patches import LARGEST_DISAGREEMENT
from .spot_sample import PatchOptions, SpotSample, check_sample_id

_TABLES = "HEST_v*.csv"
_ESTIMATED, _EMBEDDED = "pixel_size_um_estimated", "pixel_size_um_embedded"
_KEPT_FACTS = ("st_technology", "species", "organ", "disease_state", "oncotree_code", "preservation_method")
_SQUARE = ("xenium", "visium hd")
"""Technologies that HEST pools in squares."""


@dataclass(frozen=True, kw_only=True)
class HestFolder:
    """Where a sample of HEST-1k is.

    Attributes:
        folder: The data set, with ``wsis``, ``st`` and ``metadata``.
        sample: Name of the sample there, such as ``TENX95``.
        counts_layer: Layer of the h5ad that holds raw counts, or ``raw``; None takes X, where HEST has them.

    Raises:
        ParameterError: If the name of the sample is none that files have.
    """

    folder: Path
    sample: str
    counts_layer: str | None = None

    def __post_init__(self) -> None:
        check_sample_id(self.sample)

    @property
    def expression(self) -> Path:
        """The h5ad."""
        return self.folder / "st" / f"{self.sample}.h5ad"

    @property
    def slide(self) -> Path:
        """The image."""
        return self.folder / "wsis" / f"{self.sample}.tif"

    @property
    def metadata(self) -> Path | None:
        """What is known of the sample: its JSON, or HEST's newest table of all samples; None if there is neither."""
        file = self.folder / "metadata" / f"{self.sample}.json"
        return file if file.is_file() else max(self.folder.glob(_TABLES), default=None)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that are read, beside the image.

        Raises:
            DataError: If the h5ad or the image is missing.
        """
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder}: no such folder; give the one that holds wsis/, st/ and metadata/"
            )
        for path in (self.expression, self.slide):
            if not path.is_file():
                others = sorted(file.stem for file in path.parent.glob(f"*{path.suffix}"))
                have = f"has {', '.join(others[:5])}{' …' * (len(others) > 5)}" if others else "has none"
                raise DataError(
                    f"{path}: missing, and {path.parent} {have}; give a sample that was downloaded"
                )
        return (self.expression, *([] if self.metadata is None else [self.metadata]))

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What is known of the sample, by HEST's names; without what is missing there.

        Raises:
            DataError: If the file cannot be read, or the table lacks the sample.
        """
        return {} if self.metadata is None else _read_facts(self.metadata, self.sample)

    @property
    def study(self) -> str | None:
        """Title of the data set that it is of."""
        return _text(self.facts, "dataset_title")

    @property
    def patient(self) -> str | None:
        """Its patient; HEST numbers them within each data set, so that the title belongs to the name."""
        patient = _text(self.facts, "patient")
        return None if patient is None else f"{self.study}: {patient}" if self.study else patient

    def read(self, sample_id: str, patches: PatchOptions) -> SpotSample:
        """Reads the spots that lie under tissue.

        Raises:
            DataError: If the counts or the metadata cannot be used, or spots have no places.
        """
        counts = read_counts(self.expression, self.counts_layer)
        if counts.spatial is None:
            raise DataError(
                f"{self.expression}: has no obsm['spatial'], centres of the spots in px of {self.slide.name}; copy it again"
            )
        num_measured = len(counts.barcodes)
        counts = counts.under_tissue()
        technology = _text(self.facts, "st_technology") or ""
        estimated, embedded = (_size(self.metadata, self.facts, name) for name in (_ESTIMATED, _EMBEDDED))
        contradicted = (
            estimated is not None
            and embedded is not None
            and abs(embedded / estimated - 1) > LARGEST_DISAGREEMENT
        )
        shape: Literal["circle", "square"] = "square" if technology.lower() in _SQUARE else "circle"
        assert counts.spatial is not None
        return SpotSample(
            sample_id=sample_id,
            barcodes=counts.barcodes,
            genes=counts.genes,
            counts=counts.values,
            spatial=counts.spatial,
            um_per_px=estimated,
            um_per_px_from=f"{_ESTIMATED} in {self.metadata}",
            spot_shape=shape,
            # of Visium HD the table states the bin of 2 µm, not the square that HEST pools
            spot_size_um=None if shape == "square" else _size(self.metadata, self.facts, "spot_diameter"),
            image=f"{self.slide}, as HEST distributes it",
            files=self.files,
            notes={
                "platform": f"HEST {technology}".strip(),
                **{name: value for name in _KEPT_FACTS if (value := _text(self.facts, name)) is not None},
                _ESTIMATED: estimated,
                _EMBEDDED: embedded,
                "embedded_size_contradicts": contradicted,
                "num_not_in_tissue": num_measured - len(counts.barcodes),
            },
        )


def _read_facts(file: Path, sample: str) -> dict[str, Any]:
    if file.suffix == ".json":
        try:
            # HEST writes NaN for what is missing, as Python does
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read as JSON ({error}); copy it again") from error
        if not isinstance(found, dict):
            raise DataError(f"{file}: must hold an object with HEST's facts about one sample; copy it again")
    else:
        found = next((row for row in read_csv(file, ("id",)) if row["id"] == sample), None)
        if found is None:
            raise DataError(
                f"{file}: lacks the sample '{sample}', and there is no metadata/{sample}.json; copy that, too"
            )
    return {name: value for name, value in found.items() if not _is_missing(value)}


def _is_missing(value: Any) -> bool:
    return (
        value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan"))
    )


def _text(facts: Mapping[str, Any], name: str) -> str | None:
    return " ".join(str(facts[name]).split()) if name in facts else None


def _size(file: Path | None, facts: Mapping[str, Any], name: str) -> float | None:
    """Takes a length in µm."""
    if name not in facts:
        return None
    try:
        value = float(facts[name])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise DataError(f"{file}: '{name}' is {facts[name]!r}; it must be a length in µm, or missing")
    return value
