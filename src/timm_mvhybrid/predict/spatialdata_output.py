"""Predictions on a slide → a SpatialData store: squares, their table and the slide's picture, in level-0 px."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.atomic_file import writing
from ..runtime.atomic_folder import OutputFolder
from ..runtime.extras import require
from .anndata_output import to_anndata
from .slide_prediction import SlidePrediction

EXTRA = "spatialdata"
IMAGE, SHAPES, TABLE = "slide", "patches", "expression"
"""Names of the elements of the store."""


def require_spatialdata() -> Any:
    """Imports SpatialData.

    Raises:
        MissingPackageError: It is not installed.
    """
    with warnings.catch_warnings():
        # of its dependencies, about each other
        warnings.simplefilter("ignore")
        return require("spatialdata", EXTRA)


def to_spatialdata(found: SlidePrediction) -> Any:
    """Makes a SpatialData: image ``slide``, shapes ``patches``, table ``expression``, all in coordinate system ``global``.

    Raises:
        MissingPackageError: SpatialData is not installed.
    """
    spatialdata = require_spatialdata()
    models = require("spatialdata.models", EXTRA)
    scale = require("spatialdata.transformations", EXTRA).Scale
    geopandas, shapely = require("geopandas", EXTRA), require("shapely", EXTRA)
    (left, top), side = found.corners.T, found.stride_level0
    table = to_anndata(found)
    # the store has the picture as an image
    del table.uns["spatial"]
    table.obs["region"] = require("pandas").Categorical([SHAPES] * table.n_obs)
    table.obs["patch"] = table.obs_names
    per_px = 1 / found.picture_scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return spatialdata.SpatialData(
            images={
                IMAGE: models.Image2DModel.parse(
                    np.moveaxis(found.picture, 2, 0),
                    dims=("c", "y", "x"),
                    c_coords=["r", "g", "b"],
                    transformations={"global": scale([per_px, per_px], axes=("x", "y"))},
                )
            },
            shapes={
                SHAPES: models.ShapesModel.parse(
                    geopandas.GeoDataFrame(
                        geometry=shapely.box(left, top, left + side, top + side), index=found.patch_names
                    )
                )
            },
            tables={
                TABLE: models.TableModel.parse(
                    table, region=SHAPES, region_key="region", instance_key="patch"
                )
            },
        )


def write_spatialdata(found: SlidePrediction, output: OutputFolder, path: Path) -> None:
    """Writes ``to_spatialdata`` where an unfinished folder stands.

    Raises:
        MissingPackageError: SpatialData is not installed.
        OutputError: The disk does not take it.
    """
    store = to_spatialdata(found)
    with warnings.catch_warnings(), writing(path):
        warnings.simplefilter("ignore")
        # it writes to names that are free
        output.folder.rmdir()
        store.write(output.folder)
