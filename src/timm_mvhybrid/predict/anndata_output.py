"""Predictions on a slide → an AnnData that scanpy and squidpy plot over the slide's picture as they do Visium's."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.anndata_file import quiet_anndata, write_anndata
from ..runtime.extras import require
from .slide_prediction import SlidePrediction

RECORD_KEY = "timm_mvhybrid"
"""Entry of ``uns`` that holds what was done, as JSON."""
_LOWRES_PX = 600


def to_anndata(found: SlidePrediction) -> Any:
    """Makes an AnnData, patches × genes.

    ``X`` is the prediction, layers ``lower`` and ``upper`` its bounds. ``obs``: ``x`` and ``y``, the patch's top-left corner
    in level-0 px, ``distance`` to the training data and ``far``. ``var``: ``r``, correlation in left-out studies, with
    ``r_lower`` and ``r_upper``, and ``predictable``. ``obsm["spatial"]``: middles of the patches in level-0 px.
    ``uns["spatial"]`` has pictures and scale factors in Space Ranger's form; the spot's diameter is the distance of
    neighbouring patches, so that squares of that size leave no gap.
    """
    anndata, pandas = require("anndata"), require("pandas")
    reliability, prediction = found.predictor.reliability_, found.prediction
    small = _shrunk(found.picture, _LOWRES_PX)
    with quiet_anndata():
        return anndata.AnnData(
            prediction.mean,
            obs=pandas.DataFrame(
                {
                    "x": found.coords[:, 0],
                    "y": found.coords[:, 1],
                    "distance": prediction.distance,
                    "far": prediction.far,
                },
                index=found.patch_names,
            ),
            var=pandas.DataFrame(
                {
                    "r": reliability.r,
                    "r_lower": reliability.lower,
                    "r_upper": reliability.upper,
                    "predictable": reliability.predictable,
                },
                index=list(found.predictor.genes_),
            ),
            layers={"lower": prediction.lower, "upper": prediction.upper},
            obsm={"spatial": found.centres},
            uns={
                # tells scanpy that values are logarithms
                "log1p": {},
                "spatial": {
                    found.name: {
                        "images": {"hires": found.picture, "lowres": small},
                        "scalefactors": {
                            "tissue_hires_scalef": found.picture_scale,
                            "tissue_lowres_scalef": small.shape[1] / found.dimensions_px[0],
                            "spot_diameter_fullres": float(found.stride_level0),
                            "fiducial_diameter_fullres": float(found.stride_level0),
                        },
                        "metadata": {"um_per_px": found.um_per_px, "patch_size_px": found.patch_size_level0},
                    }
                },
                RECORD_KEY: json.dumps(found.record),
            },
        )


def write_prediction(file: h5py.File, found: SlidePrediction) -> None:
    """Writes ``to_anndata`` into an empty, open HDF5 file."""
    write_anndata(file, to_anndata(found))


def read_record(path: Any) -> dict[str, Any] | None:
    """Reads what was done; None where the file is not one of ours, or not whole."""
    try:
        with h5py.File(path, "r") as file:
            stored = file[f"uns/{RECORD_KEY}"].asstr()[()]
        record = json.loads(stored)
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return record if isinstance(record, dict) else None


def _shrunk(picture: NDArray[np.uint8], longest_px: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = min(longest_px / max(height, width), 1.0)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
