#!/usr/bin/env bash
# numba 0.63.1, numpy 2.3.5: a cached function keeps the old code of a helper that was changed in another file.
#
# Expected: `njit(cache=True)` notices that what it compiled is out of date, as it does for the file of the function itself.
# Seen: only that file's time and size count. After a change of a helper module the next process still returns what the old
# helper computed; a touch of the caller's file brings the new result.
# Hurt: packages whose kernels share helpers, at each update that leaves the kernels' own files as they were: installed files
# keep their times in some installers. Put a digest of all sources into the compiled function, as a constant that it closes over.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder/packages" numba==0.63.1 numpy==2.3.5
mkdir "$folder/code"
cat > "$folder/code/kernel.py" <<'PYTHON'
from helper import factor
from numba import njit


@njit(cache=True)
def scaled(x):
    return factor() * x
PYTHON
write_helper() { printf 'from numba import njit\n\n\n@njit\ndef factor():\n    return %s\n' "$1" > "$folder/code/helper.py"; }
call() { PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$folder/packages:$folder/code" "${PYTHON:-python3}" -c "import kernel; print(kernel.scaled(1.0))"; }
write_helper 2.0
first=$(call)
write_helper 30.0
stale=$(call)
printf '# changed\n' >> "$folder/code/kernel.py"
fresh=$(call)
PYTHONPATH="$folder/packages" "${PYTHON:-python3}" -c "import numba, numpy; print(f'numba {numba.__version__}, numpy {numpy.__version__}')"
echo "expected: 2.0, then 30.0 after the helper was changed"
echo "seen: $first, then $stale; $fresh after the caller's file was changed, too"
[[ "$first $stale $fresh" == "2.0 2.0 30.0" ]]
