"""Embedding h5 → what other programs read: AnnData for scanpy, a SpatialData store for lazyslide, Parquet for pyarrow.

Embeddings are copied a few rows at a time, and what is written is whole or absent. Nothing is lost but the h5 itself:
its attributes go along as JSON.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data import DataError
from ..data.remote_path import AnyPath
from ..runtime.anndata_file import quiet_anndata, write_anndata
from ..runtime.atomic_file import Leftovers, OutputFile, check_output_file, claimed, writing
from ..runtime.atomic_folder import OutputFolder
from ..runtime.errors import EvaluationError, OutputError, ParameterError
from ..runtime.extras import require
from ..runtime.h5_output import H5Output
from .embedding_store import StoredPatches, check_not_input, read_batches, read_patches, read_rows

ExportFormat = Literal["h5ad", "zarr", "parquet"]
EmbeddingFormat = Literal["auto", "h5", "h5ad", "zarr", "parquet"]

SUFFIXES = {".h5ad": "h5ad", ".zarr": "zarr", ".parquet": "parquet"}
RECORD_KEY = "timm_mvhybrid"
"""Under it stand the attributes of the h5, as JSON: in ``uns``, in Parquet's metadata, in the store's attributes."""
TILES = "tiles"
"""lazyslide's name of the shapes that hold the tiles."""
_ROWS_PER_CHUNK = 256
_ROWS_PER_PART = 4096
_PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "h5ad": (("anndata", "evaluate"), ("pandas", "evaluate")),
    "parquet": (("pyarrow.parquet", "evaluate"),),
    "zarr": (("spatialdata", "spatialdata"),),
}


def choose_format(output: str | Path, format: EmbeddingFormat = "auto") -> Literal["h5"] | ExportFormat:
    """Finds out in which format an output is written.

    Args:
        output: The file or folder to write.
        format: ``auto`` goes by the output's suffix: .h5ad, .zarr or .parquet; h5 otherwise.

    Raises:
        ParameterError: The suffix is that of another format.
    """
    of_suffix: Any = SUFFIXES.get(Path(output).suffix.lower(), "h5")
    if format == "auto":
        return of_suffix
    wanted = {name: suffix for suffix, name in SUFFIXES.items()}.get(format)
    if of_suffix != format and (wanted is not None or of_suffix != "h5"):
        name = Path(output).with_suffix(wanted or ".h5").name
        raise ParameterError(
            f"{output}: programs would take it for another format than `format='{format}'`; name it {name}"
        )
    return format


def check_packages(format: Literal["h5"] | ExportFormat) -> None:
    """Imports what a format needs, before time is spent on its content.

    Raises:
        MissingPackageError: A package is not installed; the message names the extra that brings it.
    """
    with warnings.catch_warnings():
        # of spatialdata's dependencies, about each other
        warnings.simplefilter("ignore")
        for module, extra in _PACKAGES.get(format, ()):
            require(module, extra)


def check_export(output: str | Path, *, overwrite: bool, source: str | AnyPath | None = None) -> None:
    """Finds out whether an output can be written, a file or a store, before time is spent on its content.

    Args:
        output: The file to write, or the folder of a zarr store.
        overwrite: Whether an existing one may be replaced; a folder that is no zarr store never is.
        source: The input, which is never replaced.

    Raises:
        EvaluationError: The folder is missing or not writable, or what exists may not be replaced.
        OutputError: Another process writes it.
    """
    output = Path(output)
    check_not_input(output, source)
    if not (output.suffix.lower() == ".zarr" and output.is_dir()):
        check_output_file(output, overwrite=overwrite, error=EvaluationError)
        return
    if not any((output / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise EvaluationError(f"{output}: is a folder that is no zarr store; choose another `output`")
    if not overwrite:
        raise EvaluationError(f"{output}: exists already; replace it with `overwrite=True`")


def export_embeddings(
    file: str | Path,
    format: ExportFormat,
    output: str | Path | None = None,
    *,
    slide_id: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an embedding h5 in a format that other programs read without this package.

    ``h5ad``: an AnnData, patches × features. ``X``: the embeddings. ``obs``: ``slide_id``, ``tile_id``, ``x`` and ``y``, the
    corner in level-0 px, and ``barcode`` or ``path``. ``obsm["spatial"]``: middles of the patches in level-0 px, or their
    corners where the h5 does not state how wide they are at level 0; ``uns["tile_spec"]``: wsidata's tile specification.

    ``zarr``: a SpatialData store as lazyslide and wsidata keep it beside a slide: shapes ``tiles``, their table
    ``MODEL_tiles`` with the same ``obs``, and the tile specification.

    ``parquet``: columns ``slide_id``, ``tile_id``, ``x``, ``y``, ``barcode`` or ``path``, and ``features``, lists of D float32.

    Args:
        file: Embedding h5 of this package, or of TRIDENT or CLAM.
        format: ``h5ad``, ``zarr`` or ``parquet``.
        output: File or folder to write; None writes beside the h5, with the format's suffix.
        slide_id: Name of the slide; None takes the file's, without suffix.
        overwrite: Replace an existing output.

    Returns:
        What was written.

    Raises:
        DataError: The file holds no embeddings, or not what the format needs: zarr is of places.
        EvaluationError: The output may not be written.
        MissingPackageError: A package that the format needs is not installed.
        OutputError: The disk does not take it, or another process writes it.
        ParameterError: There is no such format.
    """
    return _export(Path(file), format, output, slide_id, overwrite=overwrite)


def _export(
    file: Path,
    format: ExportFormat,
    output: str | Path | None = None,
    slide_id: str | None = None,
    *,
    overwrite: bool,
    leftovers: Leftovers | None = None,
) -> Path:
    if format not in _PACKAGES:
        raise ParameterError(f"`format` is '{format}'; choose from {', '.join(_PACKAGES)}")
    output = file.with_suffix(f".{format}") if output is None else Path(output)
    choose_format(output, format)
    check_packages(format)
    check_export(output, overwrite=overwrite, source=file)
    with claimed(output):
        (leftovers or Leftovers(output.parent)).remove(output)
        _write(file, format, output, slide_id or file.stem, overwrite)
    return output


def export_folder(
    folder: str | Path, format: ExportFormat, *, on_file: Callable[[int, int], None] | None = None
) -> None:
    """Exports every embedding h5 of a folder beside it, unless that was done since the h5 was written.

    Of several processes one exports at a time, and the others then find it done.

    Args:
        folder: Of ``<slide_id>.h5`` files.
        format: As for ``export_embeddings``.
        on_file: Called after each file with how many are done, and how many there are.

    Raises:
        DataError: A file holds no embeddings, or not what the format needs.
        MissingPackageError: A package that the format needs is not installed.
        OutputError: The disk does not take it.
    """
    folder = Path(folder)
    files = sorted(file for file in folder.glob("*.h5") if not file.name.startswith("."))
    with claimed(folder / f"export to {format}", wait=True):
        leftovers = Leftovers(folder)
        for number, file in enumerate(files, start=1):
            # slide ids may have dots, so that a suffix is added rather than replaced
            output = folder / f"{file.stem}.{format}"
            if not output.exists() or output.stat().st_mtime_ns < file.stat().st_mtime_ns:
                _export(file, format, output, overwrite=True, leftovers=leftovers)
            if on_file is not None:
                on_file(number, len(files))


@contextmanager
def written_as(
    output: str | Path, format: EmbeddingFormat = "auto", *, overwrite: bool = False
) -> Iterator[Path]:
    """Yields the h5 that the block is to write, and turns it into the wanted format afterwards.

    For h5 that is the output itself. For others it is a hidden one, which is gone in the end, whatever happens.

    Args:
        output: File or folder to write.
        format: As in ``choose_format``.
        overwrite: Replace an existing output.

    Raises:
        EvaluationError: The output may not be written.
        MissingPackageError: A package that the format needs is not installed.
        OutputError: The disk does not take it, or another process writes it.
        ParameterError: The output's suffix is that of another format.
    """
    output = Path(output)
    chosen = choose_format(output, format)
    check_packages(chosen)
    check_export(output, overwrite=overwrite)
    if chosen == "h5":
        yield output
        return
    with claimed(output):
        Leftovers(output.parent).remove(output)
        with OutputFolder(output) as hidden:
            file = hidden.folder / f"{output.stem}.h5"
            try:
                yield file
            except OutputError as error:
                # by the name that the user knows
                error.args = (str(error).replace(str(file), str(output)),)
                raise
            _write(file, chosen, output, output.stem, overwrite)


def _write(file: Path, format: ExportFormat, output: Path, slide_id: str, overwrite: bool) -> None:
    write = {"h5ad": _write_h5ad, "zarr": _write_zarr, "parquet": _write_parquet}[format]
    write(read_patches(file), output, slide_id, overwrite)


def _write_h5ad(patches: StoredPatches, output: Path, slide_id: str, overwrite: bool) -> None:
    shape = patches.num_patches, patches.embedding_dim
    with H5Output(output, replace=overwrite) as written:
        write_anndata(written.file, _anndata(patches, slide_id))
        if "X" in written.file:
            # as nothing, which some releases of anndata write
            del written.file["X"]
        rows_per_chunk = min(_ROWS_PER_CHUNK, shape[0])
        stored = written.file.create_dataset("X", shape, np.float32, chunks=(rows_per_chunk, shape[1]))
        stored.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        start = 0
        for batch in read_batches(patches.path):
            stored[start : start + len(batch)] = batch
            start += len(batch)
            written.check()
        written.finish()


def _anndata(patches: StoredPatches, slide_id: str, **more: Any) -> Any:
    """Makes the AnnData of a slide without ``X``, which is written apart, unless it is among ``more``."""
    anndata, pandas = require("anndata"), require("pandas")
    obs = _columns(patches, slide_id)
    uns: dict[str, Any] = {RECORD_KEY: json.dumps(patches.attributes, ensure_ascii=False)}
    obsm: dict[str, NDArray[np.float64]] = {}
    if patches.coords is not None:
        half = (patches.patch_size_level0 or 0.0) / 2
        obsm["spatial"] = np.add(patches.coords, half, dtype=np.float64)
    specification = tile_spec(patches)
    if specification is not None:
        uns["tile_spec"] = {name: value for name, value in specification.items() if value is not None}
    names = [str(number) for number in range(patches.embedding_dim)]
    with quiet_anndata():
        return anndata.AnnData(
            obs=pandas.DataFrame(obs, index=[str(number) for number in range(patches.num_patches)]),
            var=pandas.DataFrame(index=names),
            obsm=obsm,
            uns=uns,
            **more,
        )


def _columns(patches: StoredPatches, slide_id: str) -> dict[str, Any]:
    """Lists what is known of each patch."""
    columns: dict[str, Any] = {
        "slide_id": [slide_id] * patches.num_patches,
        "tile_id": np.arange(patches.num_patches),
    }
    if patches.coords is not None:
        columns |= {"x": patches.coords[:, 0], "y": patches.coords[:, 1]}
    for name, values in (("barcode", patches.barcodes), ("path", patches.paths)):
        if values is not None:
            columns[name] = values
    return columns


def tile_spec(patches: StoredPatches) -> dict[str, Any] | None:
    """Describes tiles as wsidata's ``TileSpec`` does, read from level 0 and shrunk; None unless their size is stated.

    The distance of neighbours is the smallest one among the corners, and the tiles' side where that is smaller.
    """
    side, side_level0 = patches.patch_size_px, patches.patch_size_level0
    if side is None or side_level0 is None or patches.coords is None:
        return None
    apart = [step for axis in patches.coords.T for step in np.diff(np.unique(axis))]
    downsample = side_level0 / side
    stride = max(round(min([side_level0, *map(float, apart)]) / downsample), 1)
    return {
        "height": side,
        "width": side,
        "stride_height": stride,
        "stride_width": stride,
        "mpp": patches.resolution_um_per_px,
        "ops_level": 0,
        "ops_downsample": downsample,
        "base_level": 0,
        "base_downsample": downsample,
        "tissue_name": None,
    }


def _write_parquet(patches: StoredPatches, output: Path, slide_id: str, overwrite: bool) -> None:
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    known = arrow.table(_columns(patches, slide_id))
    place = known.schema.get_field_index("slide_id")
    # of one value alone: a number for each row
    known = known.set_column(place, "slide_id", known["slide_id"].dictionary_encode())
    features = arrow.field("features", arrow.list_(arrow.float32(), patches.embedding_dim))
    record = {RECORD_KEY: json.dumps(patches.attributes, ensure_ascii=False)}
    schema = known.schema.append(features).with_metadata(record)
    with OutputFile(output, replace=overwrite) as written:
        # features do not repeat, and a dictionary of them would be as large as they are
        with parquet.ParquetWriter(written, schema, use_dictionary=["slide_id"]) as writer:
            start = 0
            for batch in read_batches(patches.path):
                values = arrow.FixedSizeListArray.from_arrays(arrow.array(batch.ravel()), batch.shape[1])
                rows = known.slice(start, len(batch)).append_column(features, values)
                writer.write_table(rows.cast(schema))
                start += len(batch)
                written.check()
        written.finish()


def _write_zarr(patches: StoredPatches, output: Path, slide_id: str, overwrite: bool) -> None:
    spatialdata, models = require("spatialdata", "spatialdata"), require("spatialdata.models", "spatialdata")
    geopandas, shapely = require("geopandas", "spatialdata"), require("shapely", "spatialdata")
    pandas = require("pandas")
    specification = tile_spec(patches)
    if patches.coords is None or specification is None:
        missing = "no coordinates" if patches.coords is None else "not how wide a patch is at level 0"
        raise DataError(
            f"{patches.path}: states {missing}, of which a SpatialData store is made; embed the slide again, or take "
            "`format='h5ad'` or `format='parquet'`"
        )
    # before a store is begun: zarr writes in threads of its own, which an error does not end
    for _ in read_batches(patches.path):
        pass
    (left, top), side = patches.coords.T, patches.patch_size_level0
    columns = {name: _columns(patches, slide_id)[name] for name in ("tile_id", "x", "y")}
    squares = shapely.box(left, top, left + side, top + side)
    with warnings.catch_warnings():
        # of its dependencies, about each other
        warnings.simplefilter("ignore")
        table = _anndata(patches, slide_id, X=_lazy_features(patches))
        del table.uns["tile_spec"]
        table.obs["library_id"] = pandas.Categorical([TILES] * patches.num_patches)
        attributes: dict[str, Any] = {"tile_spec": {TILES: specification}, RECORD_KEY: patches.attributes}
        if patches.um_per_px_level0 is not None:
            attributes["slide_properties"] = {"mpp": patches.um_per_px_level0}
        store = spatialdata.SpatialData(
            shapes={TILES: models.ShapesModel.parse(geopandas.GeoDataFrame(columns, geometry=squares))},
            tables={
                table_name(patches.model): models.TableModel.parse(
                    table, region=TILES, region_key="library_id", instance_key="tile_id"
                )
            },
            attrs=attributes,
        )
        with OutputFolder(output, replace=overwrite) as written:
            # it writes to names that are free; one part at a time, so that memory does not grow with cores
            with writing(output), require("dask", "spatialdata").config.set(scheduler="synchronous"):
                written.folder.rmdir()
                store.write(written.folder)
            written.finish()


def table_name(model: str) -> str:
    """Names the table of a model's features as lazyslide does: the model's name without its place, and the tiles'."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', model.rsplit('/')[-1]).lstrip('_') or 'features'}_{TILES}"


def _lazy_features(patches: StoredPatches) -> Any:
    """Makes a dask array of the embeddings, whose parts are read when they are written."""
    array, delayed = require("dask.array", "spatialdata"), require("dask", "spatialdata").delayed
    num, width = patches.num_patches, patches.embedding_dim
    parts = []
    for start in range(0, num, _ROWS_PER_PART):
        stop = min(start + _ROWS_PER_PART, num)
        rows = delayed(read_rows)(patches.path, start, stop)
        parts.append(array.from_delayed(rows, shape=(stop - start, width), dtype=np.float32))
    return array.concatenate(parts)
