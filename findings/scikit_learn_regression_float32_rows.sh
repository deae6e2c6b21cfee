#!/usr/bin/env bash
# scikit-learn 1.9.1, numpy 2.4.6, scipy 1.17.1: linear regression of millions of float32 rows has wrong coefficients.
#
# Expected: float32 features of mean 30 and deviation 1, a target of twice the first one plus noise: coefficients of 2 and
# 0, to 6 digits or so, for 3 million rows as for 300,000.
# Seen: 1.70 and -0.30. The means that are subtracted for the intercept are taken in float32, row after row; beyond 2^24
# each addition rounds, and they are off by half a deviation. What is then fitted without an intercept is not centred.
# LinearRegression and Ridge alike, no warning; in float64 both are right.
# Hurt: whoever regresses on pooled patches, cells or pixels in the type that their embeddings come in. Standardise first
# or convert to float64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" \
  scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import sys

import numpy
import sklearn
from sklearn.linear_model import LinearRegression, Ridge

print(f"scikit-learn {sklearn.__version__}, numpy {numpy.__version__}")
errors = {}
for num_rows in (300_000, 3_000_000):
    generator = numpy.random.default_rng(0)
    features = (generator.normal(size=(num_rows, 2)) + 30).astype(numpy.float32)
    target = (2 * features[:, 0] + generator.normal(size=num_rows)).astype(numpy.float32)
    for model in (LinearRegression(), Ridge(alpha=1.0)):
        seen = model.fit(features, target).coef_.copy()
        expected = model.fit(features.astype(numpy.float64), target.astype(numpy.float64)).coef_
        errors[num_rows, type(model).__name__] = numpy.abs(seen - expected).max()
        print(f"{num_rows} rows, {type(model).__name__}: float64 {expected.round(4)}, float32 {seen.round(4)}")
few, many = ([error for (rows, _), error in errors.items() if rows == wanted] for wanted in (300_000, 3_000_000))
sys.exit(0 if max(few) < 1e-3 and min(many) > 0.1 else 1)
PYTHON
