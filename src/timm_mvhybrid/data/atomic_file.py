"""Files that appear whole or not at all: a temporary name, then the real one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside a path, which takes the path's place when the block ends without an error.

    Args:
        path: The file to write; its folder exists.

    Yields:
        The temporary name, for the block to write. The file is removed if the block fails.
    """
    # the suffix stays, for writers choose their format by it
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
