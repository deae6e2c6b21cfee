#!/usr/bin/env bash
# numpy 2.3.5: the OSError of a write that the operating system refuses has no errno.
#
# Expected: `numpy.save` and `ndarray.tofile` onto a disk that is full, or beyond a limit of file size, raise what
# `write` raises: an OSError with errno ENOSPC, or EFBIG, and its text.
# Seen: OSError("1000 requested and 109 written"): errno and strerror are None, so that a full disk cannot be told from
# a broken one, and a message made of `error.strerror` says "None". The same array written by `file.write(array)` has
# its errno.
# Hurt: whoever handles a full disk by its errno. Serialise into memory, or hand the array's buffer to `write`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder" numpy==2.3.5
PYTHONPATH="$folder" "${PYTHON:-python3}" - "$folder/array" <<'PYTHON'
import errno
import resource
import sys

import numpy

array = numpy.ones(1000)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)


def refused(write):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with open(sys.argv[1], "wb", buffering=0) as file:
            write(file)
            # what fits is taken first; the next call is refused
            write(file)
    except OSError as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


saved = refused(lambda file: numpy.save(file, array))
stored = refused(array.tofile)
written = refused(lambda file: file.write(array))
print(f"numpy {numpy.__version__}")
print(f"expected: errno {errno.EFBIG}, as file.write gives: {written.errno}, {written}")
print(f"seen: numpy.save: {saved.errno}, {saved}; tofile: {stored.errno}, {stored}")
sys.exit(0 if saved.errno is None and stored.errno is None and written.errno == errno.EFBIG else 1)
PYTHON
