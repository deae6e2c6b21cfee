"""Slides + settings + records → which slides are to be embedded, and why; no slide is opened for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
from timm.data.config import resolve_data_config

from ..data import Edge, SlideInput, TilingOptions
from ..data.remote_path import AnyPath, RemotePath, ask_together
from ..data.slide_files import slide_stamp
from ..runtime.errors import EvaluationError, OutputError
from .backbone import Backbone
from .embedding_cache import weights_digest
from .embeddings import ForwardOptions
from .slide_cohort import SlideRecord
from .slide_opening import SlideOpening, stamp_of

MADE_OF = "made_of"
"""Attribute of a slide's file: its digests as JSON, by which a file of this command is known."""
_OF_FILES = ("slide", "coords")


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """What the features of every slide depend on, beside the slide.

    Attributes:
        weights: SHA-256 of the weights.
        transform: Hash of what happens between patch and vector: model, normalisation, size, pooling, type.
        tiling: How slides are cut.
        place: Of coordinate h5 files that are given alone: their slide, or the folder of slides.
        edge: How patches beyond a slide's edge are filled.
    """

    weights: str
    transform: str
    tiling: TilingOptions
    place: Path | None = None
    edge: Edge = "auto"

    @staticmethod
    def of(
        backbone: Backbone,
        forward: ForwardOptions,
        tiling: TilingOptions,
        *,
        place: Path | None = None,
        edge: Edge = "auto",
    ) -> CohortSettings:
        """Computes them for a model."""
        config = resolve_data_config({}, model=backbone.model)
        transform = {
            "model": backbone.name,
            "own_size_px": list(config["input_size"]),
            "mean": [float(value) for value in config["mean"]],
            "std": [float(value) for value in config["std"]],
            "input_size": forward.input_size,
            "global_pool": forward.pool,
            "dtype": forward.dtype,
        }
        return CohortSettings(
            weights=weights_digest(backbone),
            transform=_hashed(transform),
            tiling=tiling,
            place=place,
            edge=edge,
        )

    def tiling_of(self, slide: SlideInput) -> TilingOptions:
        """Takes the resolution that was given for one slide."""
        if slide.um_per_px is None:
            return self.tiling
        return dataclasses.replace(self.tiling, slide_resolution_um_per_px=slide.um_per_px)

    def digests(self, slide: SlideInput) -> dict[str, str]:
        """Lists what a slide's file is made of, beside the slide."""
        tiling = {**dataclasses.asdict(self.tiling_of(slide)), "edge": self.edge}
        return {"weights": self.weights, "transform": self.transform, "tiling": _hashed(tiling)}


@dataclass(frozen=True, kw_only=True)
class PlannedSlide:
    """A slide that is to be opened.

    Attributes:
        slide: The slide.
        attempts: How often it was tried before.
        digests: What its file will be made of, beside the slide.
        known: Digests of slide and coordinates that need no new file.
        recovered: What its file says where ``cohort.jsonl`` says nothing, as after a kill between the two; None otherwise.
        tiles: How many it had when it was last embedded; None if it never was.
        num_bytes: Size of the slide.
    """

    slide: SlideInput
    attempts: int = 0
    digests: dict[str, str]
    known: dict[str, str] = field(default_factory=dict)
    recovered: SlideRecord | None = None
    tiles: int | None = None
    num_bytes: int = 0

    def opening(self, settings: CohortSettings) -> SlideOpening:
        """Asks a reader for it."""
        return SlideOpening(
            slide=self.slide,
            tiling=settings.tiling_of(self.slide),
            place=settings.place,
            edge=settings.edge,
            known=self.known,
        )


def plan_slides(
    slides: Sequence[SlideInput],
    folder: Path,
    settings: CohortSettings,
    records: Mapping[str, SlideRecord],
    *,
    overwrite: bool = False,
) -> list[PlannedSlide]:
    """Finds the slides that have no file, failed, or may have changed, or whose settings did.

    A slide whose size or time of change differs is opened, and left as it is if its content is what it was.

    Args:
        slides: The slides.
        folder: Of the cohort.
        settings: What features depend on.
        records: How slides ended before.
        overwrite: Whether to embed all of them, and to replace files that this command did not write.

    Raises:
        EvaluationError: A file of one of these names was written by something else, or is an input.
        RemoteError: Another machine does not answer.
    """
    planned = []
    remote = [slide.path for slide in slides if isinstance(slide.path, RemotePath)]
    stamps = dict(zip(remote, ask_together(slide_stamp, remote), strict=True))
    for slide in slides:
        record, digests = records.get(slide.slide_id), settings.digests(slide)
        file = folder / f"{slide.slide_id}.h5"
        _check_file(file, slide, record, overwrite=overwrite)
        recovered = _recovered(file, slide) if record is None and not overwrite else None
        record = record or recovered
        known = {} if overwrite or record is None else _known(record, digests, file)
        if record is not None and known and _is_unchanged(record, slide, settings.place, stamps):
            continue
        planned.append(
            PlannedSlide(
                slide=slide,
                attempts=0 if record is None else record.attempts,
                digests=digests,
                known=known,
                recovered=recovered,
                tiles=record.tiles if record is not None and record.state != "failed" else None,
                num_bytes=_num_bytes(slide.path, stamps),
            )
        )
    return planned


def check_folder(folder: Path) -> None:
    """Refuses a folder that takes no files.

    Raises:
        OutputError: It may not be written.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{folder}: cannot be written; choose another place, or ask for permission to write there"
        )


def _known(record: SlideRecord, digests: Mapping[str, str], file: Path) -> dict[str, str]:
    """Takes the digests of a slide that needs no work if it still has them; none if it needs work in any case."""
    # how tissue is found does not depend on the model
    decisive = {"done": tuple(digests), "empty": ("tiling",), "failed": ()}[record.state]
    same = bool(decisive) and all(record.digests.get(name) == digests[name] for name in decisive)
    if not same or (record.state == "done" and not file.is_file()):
        return {}
    return {name: record.digests[name] for name in _OF_FILES if name in record.digests}


def _num_bytes(path: AnyPath, stamps: Mapping[RemotePath, str]) -> int:
    """Looks up how large a slide is, by which slides are dealt; of a store on another machine it is not known."""
    if isinstance(path, RemotePath):
        size = stamps[path].partition(" ")[0]
        return int(size) if size.isdigit() else 0
    return path.stat().st_size


def _is_unchanged(
    record: SlideRecord, slide: SlideInput, place: Path | None, stamps: Mapping[RemotePath, str]
) -> bool:
    """Says whether the same files were given, and have the sizes and times that they had; otherwise they are read."""
    if isinstance(slide.path, RemotePath) and slide.coords is None:
        return str(slide.path) == record.path and bool(record.stamp) and record.stamp == stamps[slide.path]
    first = slide.path if slide.coords is None else slide.coords
    if str(first.absolute()) != (record.coords or record.path):
        return False
    if slide.coords is not None:
        same_slide = str(slide.path.absolute()) == record.path
    else:
        found = Path(record.path)
        same_slide = not record.coords or place is None or place.absolute() in (found, found.parent)
    if not same_slide or not record.stamp:
        return False
    path = slide.path if isinstance(slide.path, RemotePath) else Path(record.path)
    return record.stamp == stamp_of(path, Path(record.coords) if record.coords else None)


def _check_file(file: Path, slide: SlideInput, record: SlideRecord | None, *, overwrite: bool) -> None:
    if not file.exists():
        return
    for given in (slide.path, slide.coords):
        if isinstance(given, Path) and given.exists() and os.path.samefile(given, file):
            raise EvaluationError(f"{file}: is an input itself; choose another `output`")
    if record is None and not overwrite and not _is_ours(file):
        raise EvaluationError(
            f"{file}: exists already, and was not written for a cohort; choose another `output`, or replace such files with "
            "`overwrite=True`"
        )


def _is_ours(file: Path) -> bool:
    """Says whether a file is of this command; one whose record was lost, as by a kill, is."""
    return _made_of(file) is not None


def _made_of(file: Path) -> tuple[dict[str, str], int] | None:
    """Reads what a file was made of, and how many tiles it holds; None if it is not of this command."""
    try:
        with h5py.File(file, "r") as content:
            digests = json.loads(content.attrs[MADE_OF])
            return {str(name): str(digest) for name, digest in digests.items()}, len(content["embeddings"])
    except (OSError, KeyError, ValueError, AttributeError, TypeError):
        return None


def _recovered(file: Path, slide: SlideInput) -> SlideRecord | None:
    """Makes the record of a file that has none; without times, so that its slide is read before it counts as unchanged."""
    made_of = _made_of(file)
    if made_of is None:
        return None
    digests, tiles = made_of
    return SlideRecord(
        slide_id=slide.slide_id,
        path=str(slide.path.absolute()),
        state="done",
        tiles=tiles,
        file=file.name,
        digests=digests,
    )


def _hashed(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
