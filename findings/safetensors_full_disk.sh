#!/usr/bin/env bash
# safetensors 0.6.2, numpy 2.3.5: a write that the operating system refuses is not an OSError.
#
# Expected: `save_file` onto a disk that is full, or beyond a limit of file size, raises an OSError with its errno, as
# `open` and `write` do, so that `except OSError` covers it.
# Seen: SafetensorError, which derives from Exception alone, has no errno, and names no file; the reason stands in its
# text only. The file of that name, a good one before, holds the first part of the new one.
# Hurt: whoever saves over the last good weights within `except OSError`. Write `save(...)`'s bytes by one's own means,
# under another name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" safetensors==0.6.2 numpy==2.3.5
PYTHONPATH="$folder" "${PYTHON:-python3}" - "$folder/weights.safetensors" <<'PYTHON'
import os
import resource
import sys

import numpy
import safetensors
from safetensors.numpy import load_file, save_file

path = sys.argv[1]
save_file({"weight": numpy.ones(10, numpy.float32)}, path)
assert load_file(path)["weight"].sum() == 10
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
caught = None
try:
    save_file({"weight": numpy.ones(1000, numpy.float32)}, path)
except Exception as error:
    caught = error
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
size = os.path.getsize(path)
print(f"safetensors {safetensors.__version__}, numpy {numpy.__version__}")
print("expected: an OSError with an errno")
print(f"seen: {type(caught).__name__}, an OSError: {isinstance(caught, OSError)}; {caught}; {size} bytes of 4,000 are there")
as_described = caught is not None and not isinstance(caught, OSError) and "os error" in str(caught) and size <= 1000
sys.exit(0 if as_described else 1)
PYTHON
