#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.3.5: the same arrays and metadata are not the same file.
#
# Expected: `save` of equal arrays with equal metadata gives equal bytes, run after run, so that a digest of the file says
# whether anything changed. Names of tensors are written in a fixed order.
# Seen: two entries of metadata are written in an order that is drawn at random for each call; the bytes differ.
# Hurt: whoever tells files apart, names them, or avoids uploading them again by the sha256 of what they just saved. One
# entry has one order: put everything into one text, such as JSON with sorted keys.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" safetensors==0.8.0 numpy==2.3.5
PYTHONPATH="$folder" "${PYTHON:-python3}" - <<'PYTHON'
import sys

import numpy
import safetensors
from safetensors.numpy import save

array = {"weight": numpy.ones(3, numpy.float32)}
two = {save(array, metadata={"one": "1", "two": "2"}) for _ in range(40)}
one = {save(array, metadata={"one": "1"}) for _ in range(40)}
print(f"safetensors {safetensors.__version__}, numpy {numpy.__version__}")
print("expected: 40 calls with equal arguments give the same bytes")
print(f"seen: {len(two)} different files with two entries of metadata, {len(one)} with one")
sys.exit(0 if len(two) > 1 and len(one) == 1 else 1)
PYTHON
