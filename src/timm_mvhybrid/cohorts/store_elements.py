"""Elements of a SpatialData store, by the package ``spatialdata``: opened without its warnings, chosen by name, mapped."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.anndata_file import quiet_anndata
from ..runtime.errors import DataError
from ..runtime.extras import require

EXTRA = "spatialdata"
_KINDS = ("tables", "shapes", "labels", "images")


@contextmanager
def quiet_spatialdata() -> Iterator[None]:
    """Silences what spatialdata, dask and zarr say about stores of earlier versions and about themselves."""
    logger = logging.getLogger("spatialdata")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), quiet_anndata():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def open_store(folder: Path) -> Any:
    """Opens a store, without its points; images stay on disk.

    Raises:
        DataError: If it cannot be read.
        MissingPackageError: If spatialdata is not installed.
    """
    with quiet_spatialdata():
        spatialdata = require("spatialdata", EXTRA)
        try:
            return spatialdata.read_zarr(folder, selection=_KINDS)
        except Exception as error:  # whatever zarr, anndata, geopandas, dask or pyarrow raise
            raise DataError(
                f"{folder}: cannot be read as a SpatialData store ({' '.join(str(error).split())[:200]}); write it again by "
                "SpatialData.write"
            ) from error


def choose_element(folder: Path, kind: str, name: str | None) -> str:
    """Chooses an element of a store by its folder.

    Args:
        folder: The store.
        kind: ``tables`` or ``images``.
        name: Its name; None takes the only one.

    Raises:
        DataError: If there is none of that name, or several and none is named.
    """
    if not folder.is_dir():
        what = "is a file; unpack it" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}, and give the folder of a SpatialData store (.zarr)")
    inside = folder / kind
    names = sorted(entry.name for entry in inside.iterdir() if entry.is_dir()) if inside.is_dir() else []
    singular = kind.removesuffix("s")
    if name is None and len(names) == 1:
        return names[0]
    if name is None and names:
        raise DataError(f"{folder}: has the {kind} {', '.join(names)}; choose one by `{singular}`")
    if name is None or name not in names:
        asked = f"no {singular} '{name}'" if name is not None else f"no {singular}"
        have = f"; it has {', '.join(names)}" if names else ""
        raise DataError(
            f"{folder}: {asked} in its folder {kind}{have}; is it a SpatialData store with {kind}?"
        )
    return name


def level0(image: Any) -> Any:
    """Takes the largest of an image element's scales, as an xarray (c, y, x)."""
    return (
        require("spatialdata", EXTRA).get_pyramid_levels(image, n=0) if hasattr(image, "children") else image
    )


def affine_matrix(element: Any, system: str) -> NDArray[np.float64]:
    """Returns the map from an element's own coordinates to a coordinate system, (3, 3) for x and y."""
    transformations = require("spatialdata.transformations", EXTRA)
    found = transformations.get_transformation(element, to_coordinate_system=system)
    # the matrix as stored may have its axes in another order, and more of them
    return np.asarray(found.to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)
