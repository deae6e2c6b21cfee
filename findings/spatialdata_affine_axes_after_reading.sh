#!/usr/bin/env bash
# spatialdata 0.7.3 (Python 3.11 or newer): the matrix of an image's Affine has other axes after writing and reading.
#
# Expected: an affine map of x and y that was given as 3 × 3 is, once it was written and read, the same map with its axes in
# one order for rows and columns, so that `matrix` says by itself whether it turns.
# Seen: `matrix` is 4 × 4, from (c, y, x) to (c, x, y): its rows are in another order than its columns. A turn by 90°, whose
# matrix was [[0, 2], [-3, 0]], is read as diag(2, -3), which looks like a scaling with a flip; of a map that does not turn
# the numbers stand off the diagonal. `to_affine_matrix(("x", "y"), ("x", "y"))` gives back what was written.
# Hurt: whoever takes `matrix`, or a block of it, to place spots on an image, and tried it on a store in memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check \
  spatialdata==0.7.3 anndata==0.12.19 zarr==3.1.6 ome-zarr==0.15.0 xarray==2026.9.0 numpy==2.4.6 pandas==2.3.3
"$folder/environment/bin/python" -W ignore - "$folder" <<'PYTHON'
import logging
import sys
from importlib.metadata import version

import numpy
import spatialdata
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, get_transformation

logging.getLogger("spatialdata").setLevel(logging.ERROR)
turn = numpy.array([[0.0, 2, 5], [-3, 0, 900], [0, 0, 1]])
affine = Affine(turn, input_axes=("x", "y"), output_axes=("x", "y"))
pixels = numpy.zeros((3, 30, 40), numpy.uint8)
image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"global": affine})
spatialdata.SpatialData(images={"image": image}).write(f"{sys.argv[1]}/store.zarr")
before = get_transformation(image)
after = get_transformation(spatialdata.read_zarr(f"{sys.argv[1]}/store.zarr")["image"])
print(f"spatialdata {version('spatialdata')}, zarr {version('zarr')}")
print(f"written: {before.input_axes} -> {before.output_axes}\n{before.matrix}")
print("expected: the same after reading, or rows and columns in one order of axes")
print(f"seen: {after.input_axes} -> {after.output_axes}\n{after.matrix}")
asked = after.to_affine_matrix(("x", "y"), ("x", "y"))
print(f"to_affine_matrix gives what was written: {numpy.array_equal(asked, turn)}")
looks_like_a_scaling = numpy.array_equal(after.matrix[1:3, 1:3], numpy.diag([2.0, -3]))
sys.exit(0 if looks_like_a_scaling and after.input_axes != after.output_axes else 1)
PYTHON
