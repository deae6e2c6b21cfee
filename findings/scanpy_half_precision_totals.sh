#!/usr/bin/env bash
# scanpy 1.11.5, anndata 0.12.19, numpy 2.4.6: normalize_total of float16 counts turns whole cells into zeros.
#
# Expected: every cell has the target total afterwards; an h5ad in half precision is written and read without a word.
# Seen: a cell's total is kept in float16 too, whose largest number is 65,504. A cell of more counts has an infinite
# total, and its counts divided by that are all 0: no error and no warning. calculate_qc_metrics reports inf.
# Hurt: whoever stores counts in half precision to save space (each count fits, their sum does not): the deepest cells
# and spots come out empty, and everything after them (log1p, variable genes, clusters) takes them for that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" \
  scanpy==1.11.5 anndata==0.12.19 numpy==2.4.6
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import importlib.metadata
import sys
import warnings

import anndata
import numpy
import scanpy

# 200 genes: a cell of 100 counts each, 20,000 in all, and one of 400 each, 80,000 in all
counts = numpy.repeat([[100], [400]], 200, axis=1)
totals = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for dtype in ("float32", "float16"):
        data = anndata.AnnData(counts.astype(dtype))
        scanpy.pp.normalize_total(data, target_sum=10_000)
        totals[dtype] = data.X.sum(axis=1, dtype=numpy.float64).round().tolist()
print(f"scanpy {importlib.metadata.version('scanpy')}, anndata {importlib.metadata.version('anndata')}")
print(f"expected: totals of {totals['float32']}, as of float32")
print(f"seen: {totals['float16']}")
print(f"warnings about it: {[str(one.message) for one in said if 'overflow' in str(one.message).lower()]}")
sys.exit(0 if totals["float32"] == [10_000, 10_000] and totals["float16"][1] == 0 else 1)
PYTHON
