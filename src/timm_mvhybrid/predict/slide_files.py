"""The files of a slide's prediction: which they are, whether they are complete, and how they are written, all or none."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.atomic_file import OutputFile, remove_leftovers
from ..runtime.atomic_folder import OutputFolder
from ..runtime.errors import DataError
from ..runtime.h5_output import H5Output
from .anndata_output import read_record, write_prediction
from .geojson_output import geojson_lines
from .slide_options import SlideOptions
from .slide_page import slide_page
from .slide_prediction import SlidePrediction, genes_to_show
from .spatialdata_output import write_spatialdata

MOST_GENES = 50
"""Genes of page and GeoJSON where none are asked for; all are in the h5ad."""
_WRITE_BYTES = 1 << 20
_REMEDY = "choose another `output`, or predict again with `overwrite=True`"


@dataclass(frozen=True, kw_only=True)
class SlideFiles:
    """Where the prediction of a slide is written.

    Attributes:
        h5ad: The AnnData; it gets its name last, so that it says that the others are complete.
        page: The page.
        geojson: For QuPath.
        store: SpatialData's folder.
    """

    h5ad: Path
    page: Path
    geojson: Path
    store: Path

    @staticmethod
    def of(folder: Path, name: str) -> SlideFiles:
        """Names the files of a slide."""
        return SlideFiles(
            h5ad=folder / f"{name}.h5ad",
            page=folder / f"{name}.html",
            geojson=folder / f"{name}.geojson",
            store=folder / f"{name}.zarr",
        )

    @property
    def everything(self) -> tuple[Path, ...]:
        """All files that there may be."""
        return self.h5ad, self.page, self.geojson, self.store

    def wanted(self, options: SlideOptions) -> tuple[Path, ...]:
        """The files that are asked for."""
        asked = {self.geojson: options.geojson, self.store: options.spatialdata}
        return tuple(path for path in self.everything if asked.get(path, True))

    def remove_leftovers(self) -> None:
        """Removes what killed runs left; for whoever has claimed the h5ad."""
        for path in self.everything:
            remove_leftovers(path)


def complete_record(
    files: SlideFiles, record: dict[str, Any], options: SlideOptions, *, overwrite: bool
) -> dict[str, Any] | None:
    """Finds out whether a slide was predicted before, in the same way.

    Args:
        files: Where its prediction is written.
        record: What the prediction depends on.
        options: Which files are asked for.
        overwrite: Whether earlier files are replaced, whatever they are.

    Returns:
        What was recorded then; None if files are missing or to be replaced.

    Raises:
        DataError: There are files of another slide, predictor or options, and they may not be replaced.
    """
    existing = [path for path in files.everything if path.exists()]
    if overwrite or not existing:
        return None
    before = read_record(files.h5ad)
    if before is None:
        problem = "exists, and the h5ad of its prediction does not"
        if files.h5ad.exists():
            problem = "exists, and is not a prediction of this command"
        raise DataError(f"{existing[0]}: {problem}; {_REMEDY}")
    was, now = ({**one, **dict(one.get("options") or {})} for one in (before, record))
    for name in sorted(now.keys() - {"options"}):
        if was.get(name) != now[name]:
            raise DataError(
                f"{files.h5ad}: was predicted with `{name}={was.get(name)!r}` instead of {now[name]!r}; {_REMEDY}"
            )
    return before if all(path.exists() for path in files.wanted(options)) else None


def write_slide(found: SlidePrediction, files: SlideFiles, options: SlideOptions) -> None:
    """Writes the files that are asked for, all or none; others of the same name go, because they no longer fit.

    Raises:
        OutputError: The disk does not take one; then none is written.
        MissingPackageError: A package that a file needs is not installed.
    """
    columns = genes_to_show(found.predictor, options.show_genes, MOST_GENES)
    wanted = files.wanted(options)
    with ExitStack() as stack:
        h5ad = stack.enter_context(H5Output(files.h5ad))
        write_prediction(h5ad.file, found)
        h5ad.settle()
        texts = [stack.enter_context(OutputFile(files.page))]
        texts[0].write(slide_page(found, columns).encode())
        if files.geojson in wanted:
            texts.append(stack.enter_context(OutputFile(files.geojson)))
            for block in _blocks(geojson_lines(found, columns)):
                texts[-1].write(block)
        for text in texts:
            text.settle()
        store = None
        if files.store in wanted:
            store = stack.enter_context(OutputFolder(files.store))
            write_spatialdata(found, store, files.store)
        for path in set(files.everything) - set(wanted):
            _remove(path)
        for text in texts:
            text.finish()
        if store is not None:
            store.finish()
        h5ad.finish()


def _blocks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Joins small parts, so that the disk is asked a few times."""
    buffer = io.BytesIO()
    for part in parts:
        buffer.write(part)
        if buffer.tell() >= _WRITE_BYTES:
            yield buffer.getvalue()
            buffer = io.BytesIO()
    yield buffer.getvalue()


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
