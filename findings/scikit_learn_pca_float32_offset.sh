#!/usr/bin/env bash
# scikit-learn 1.9.1, numpy 2.4.6, scipy 1.17.1: PCA of float32 data that do not lie around zero finds other components.
#
# Expected: PCA centres its input, so adding a constant to all features changes nothing, up to float32's rounding of the
# features themselves (here 1/32,768, of a deviation of 0.5 to 2).
# Seen: with many more rows than columns the solver chosen by default (covariance_eigh) takes the product of the
# uncentred data in float32 and subtracts the means' product afterwards, which cancels. At an offset of 1,000 the first
# component explains 67 instead of 4.1, in another direction (cosine 0.08); svd_solver="full" is right to 5 digits.
# Hurt: whoever reduces float32 embeddings, intensities or coordinates without standardising them first. Centre, convert
# to float64, or name the solver.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" \
  scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import sys

import numpy
import sklearn
from sklearn.decomposition import PCA

generator = numpy.random.default_rng(0)
centred = generator.normal(size=(5000, 64)) * numpy.linspace(2, 0.5, 64)
features = (centred + 1000).astype(numpy.float32)
truth = PCA(4).fit(features.astype(numpy.float64))
print(f"scikit-learn {sklearn.__version__}, numpy {numpy.__version__}")
print(f"expected, in float64: variance {truth.explained_variance_.round(3)}")
errors = {}
for solver in ("auto", "full"):
    found = PCA(4, svd_solver=solver).fit(features)
    cosine = abs(found.components_[0] @ truth.components_[0])
    errors[solver] = abs(found.explained_variance_[0] / truth.explained_variance_[0] - 1)
    print(f"seen, float32, {solver}: variance {found.explained_variance_.round(3)}, first component's cosine {cosine:.3f}")
sys.exit(0 if errors["auto"] > 1 and errors["full"] < 1e-3 else 1)
PYTHON
