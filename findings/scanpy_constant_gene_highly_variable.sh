#!/usr/bin/env bash
# scanpy 1.11.5, anndata 0.12.2, numpy 2.3.5, pandas 2.3.3: a gene with the same count in every cell is "highly variable".
#
# Expected: a gene whose log1p counts are one single number has no dispersion and is never selected; in float64 that is so.
# Seen: on float32, the usual type of counts, expm1 and squares are rounded, so the constant gene has a dispersion (variance
# over mean) of 2e-5 instead of 0. No other gene has such a high mean, so it is alone in its bin of means, and the
# normalised dispersion of such a gene is set to 1: above that of most genes that do vary. With n_top_genes=50 of 201 it
# is selected, and a gene that varies is not.
# Hurt: whoever selects targets or features from panels with a spike-in or a housekeeping gene that was capped or
# normalised to one value: correlations of that gene are NaN. Drop genes that do not vary first, or convert to float64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" \
    scanpy==1.11.5 anndata==0.12.2 numpy==2.3.5 pandas==2.3.3
PYTHONPATH="$folder" "${PYTHON:-python3}" -W ignore - <<'PYTHON'
import sys

import anndata
import numpy
import pandas
import scanpy

rng = numpy.random.default_rng(0)
varying = rng.poisson(rng.gamma(2, 5, size=(500, 200)))
counts = numpy.concatenate([varying, numpy.full((500, 1), 600)], axis=1)
chosen, above = {}, 0
for dtype in (numpy.float32, numpy.float64):
    data = anndata.AnnData(counts.astype(dtype))
    scanpy.pp.log1p(data)
    assert len(numpy.unique(data.X[:, -1])) == 1
    scanpy.pp.highly_variable_genes(data, n_top_genes=50)
    chosen[dtype.__name__] = bool(data.var["highly_variable"].iloc[-1])
    if dtype is numpy.float32:
        above = int((data.var["dispersions_norm"] < data.var["dispersions_norm"].iloc[-1]).sum())
print(f"scanpy {scanpy.__version__}, anndata {anndata.__version__}, numpy {numpy.__version__}, pandas {pandas.__version__}")
print("expected: a gene of 600 counts in each of 500 cells is not among the 50 most variable of 201")
print(f"seen: selected {chosen}; in float32 it is ranked above {above} of 200 genes that vary")
sys.exit(0 if chosen == {"float32": True, "float64": False} else 1)
PYTHON
