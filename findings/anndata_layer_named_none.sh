#!/usr/bin/env bash
# anndata 0.13.4 (Python 3.12 or newer): the names of a table's layers include None, which is X.
#
# Expected: `adata.layers` of a table without layers is empty, as in all releases before, and its names are strings.
# Seen: `list(adata.layers)` is `[None]`, `len` is 1, and the layer of that name is X, also after reading a file that
# has X alone; `", ".join(adata.layers)` is a TypeError.
# Hurt: whoever lists layers for a message, or works through all layers: X is then converted, or normalised, twice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check anndata==0.13.4
"$folder/environment/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version

import anndata
import numpy

path = f"{sys.argv[1]}/plain.h5ad"
anndata.AnnData(numpy.ones((2, 3), numpy.float32)).write_h5ad(path)
data = anndata.read_h5ad(path)
names = list(data.layers)
print(f"anndata {version('anndata')}")
print("expected: a table with X alone has no layers: []")
print(f"seen: {names}, {len(data.layers)} layer")
scaled = data.copy()
for name in scaled.layers:
    scaled.layers[name] = scaled.layers[name] * 2
print(f"seen: doubling every layer, of which there should be none, makes X {scaled.X[0, 0]:g} where it was 1")
sys.exit(0 if names == [None] and scaled.X[0, 0] == 2 else 1)
PYTHON
