#!/usr/bin/env bash
# anndata 0.13.4 with pandas 3.1.1, and anndata 0.10.9 with pandas 2.2.3 (Python 3.12 or newer): an h5ad written from
# plain Python strings by the first cannot be opened by the second.
#
# Expected: names of cells and genes given as lists of str are stored as they always were, as `string-array`, which
# every anndata since 0.8 reads; nothing new is used, so nothing new is needed to read it.
# Seen: pandas 3 infers its own type for them, anndata writes that as `nullable-string-array`, and anndata before 0.11
# refuses the whole file: "No read method registered". Nothing is said on writing. The same strings as an index of
# objects are stored as before.
# Hurt: whoever hands h5ad files to others, or reads them in a pipeline that pins an older anndata.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python="${PYTHON:-python3}"
"$python" -m venv "$folder/new"
"$python" -m venv "$folder/old"
"$folder/new/bin/python" -m pip install --quiet --disable-pip-version-check anndata==0.13.4 pandas==3.1.1
"$folder/old/bin/python" -m pip install --quiet --disable-pip-version-check anndata==0.10.9 pandas==2.2.3 numpy==1.26.4
"$folder/new/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version

import anndata
import numpy
import pandas

print(f"written by anndata {version('anndata')}, pandas {version('pandas')}")
for name, make in (("list", list), ("objects", lambda names: pandas.Index(names, dtype=object))):
    data = anndata.AnnData(
        numpy.ones((2, 2), numpy.float32),
        obs=pandas.DataFrame(index=make(["cell1", "cell2"])),
        var=pandas.DataFrame(index=make(["GENE1", "GENE2"])),
    )
    data.write_h5ad(f"{sys.argv[1]}/{name}.h5ad")
PYTHON
"$folder/old/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version

import anndata

print(f"opened by anndata {version('anndata')}, pandas {version('pandas')}")
print("expected: both files open")
opened = {}
for name in ("list", "objects"):
    try:
        opened[name] = list(anndata.read_h5ad(f"{sys.argv[1]}/{name}.h5ad").obs_names) == ["cell1", "cell2"]
        print(f"seen, names given as {name}: opened")
    except Exception as error:
        opened[name] = False
        print(f"seen, names given as {name}: {str(error).splitlines()[0][:120]}")
sys.exit(0 if opened == {"list": False, "objects": True} else 1)
PYTHON
