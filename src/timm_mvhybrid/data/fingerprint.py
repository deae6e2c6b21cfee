"""Identity of large files: size and samples of the content → a short hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

_NUM_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


def file_fingerprint(path: Path) -> str:
    """Tells one file from another without reading gigabytes: by its size and by evenly spread samples.

    Names and times do not count, so that copies are the same file. A file up to 1 MiB is read whole.

    Args:
        path: The file.

    Returns:
        32 hexadecimal digits.
    """
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        last = max(size - _SAMPLE_BYTES, 0)
        for index in range(_NUM_SAMPLES):
            stream.seek(last * index // (_NUM_SAMPLES - 1))
            found.update(stream.read(_SAMPLE_BYTES))
    return found.hexdigest()[:32]
