#!/usr/bin/env bash
# scipy 1.16.3, numpy 2.3.5: column sums of a float32 CSR matrix are added up in float32, even with dtype=float64.
#
# Expected: `counts.sum(axis=0, dtype=numpy.float64)` accumulates in float64, as NumPy's own sum does.
# Seen: the column sum is a product of a row of ones with the matrix, computed in the matrix's own float32; only the
# finished sums are converted. 20,000,000 spots of one count each sum to 16,777,216 (2^24), where float32 stops
# counting. Row sums and the dense array are exact.
# Hurt: whoever computes means or variances of genes over many spots or cells from a float32 count matrix; the variance
# of a constant gene is not 0 and that of a real one can come out negative. Convert the matrix first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" scipy==1.16.3 numpy==2.3.5
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import sys

import numpy
import scipy
from scipy import sparse

num_spots = 20_000_000
counts = sparse.csr_array(numpy.ones((num_spots, 1), numpy.float32))
asked = float(numpy.asarray(counts.sum(axis=0, dtype=numpy.float64)).item())
converted = float(numpy.asarray(counts.astype(numpy.float64).sum(axis=0)).item())
print(f"scipy {scipy.__version__}, numpy {numpy.__version__}")
print(f"expected: {num_spots} counts of one, summed with dtype=float64")
print(f"seen: {asked:.0f}; after converting the matrix to float64 first: {converted:.0f}")
sys.exit(0 if converted == num_spots and asked == 2**24 else 1)
PYTHON
