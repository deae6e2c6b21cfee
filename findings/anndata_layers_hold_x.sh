#!/usr/bin/env bash
# anndata 0.13.4 (Python 3.12 or newer): the mapping `layers` holds X, too, under the key None.
#
# Expected: `adata.layers` lists the layers that were added, and `dict(adata.layers)` is empty for an object without
# any, as in anndata 0.12 and before; its keys are strings.
# Seen: iterating over it yields the key None with X as its value.
# Hurt: whoever copies, counts or writes the layers in a loop: X is taken twice, and writing the element named None
# fails with an AttributeError about 'NoneType'. Skip None, or write the whole object by `anndata.io.write_elem`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" anndata==0.13.4 numpy==2.5.0 pandas==3.0.0 2> "$folder/pip.log" || { cat "$folder/pip.log"; exit 1; }
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import sys
from importlib.metadata import version

import anndata
import numpy

data = anndata.AnnData(numpy.ones((3, 2), numpy.float32))
keys = list(data.layers)
print(f"anndata {version('anndata')}")
print("expected: no layer was added, so none is listed")
print(f"seen: keys of layers {keys}")
sys.exit(0 if keys == [None] and data.layers[None] is not None else 1)
PYTHON
