#!/usr/bin/env bash
# numba 0.63.1, numpy 2.3.5: a float32 and an integer make a float64 in a compiled function, and a float32 in NumPy.
#
# Expected: `x + 1` with a scalar x of float32 has the type that NumPy 2 gives it, float32 (NEP 50), so that a kernel written
# in float32 stays in float32.
# Seen: the compiled function computes and returns float64, for a literal and for an integer variable alike, under NumPy 2.
# Hurt: kernels for CPUs, which lose half of their speed to conversions without a sign of it, and tests that compare a
# compiled function with the same Python function to the last bit. Write np.float32(1), and look at the compiled types.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" numba==0.63.1 numpy==2.3.5
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import sys

import numba
import numpy


def add_one(x):
    return x + 1


def add_count(x, count):
    return x + count


x = numpy.float32(0.1)
plain = [add_one(x).dtype.name, add_count(x, 3).dtype.name]
compiled = []
for function, arguments in ((add_one, (x,)), (add_count, (x, 3))):
    jitted = numba.njit(function)
    jitted(*arguments)
    (signature,) = jitted.nopython_signatures
    compiled.append(str(signature.return_type))
print(f"numba {numba.__version__}, numpy {numpy.__version__}")
print(f"expected: {plain}, as without compiling")
print(f"seen: {compiled}")
sys.exit(0 if plain == ["float32", "float32"] and compiled == ["float64", "float64"] else 1)
PYTHON
