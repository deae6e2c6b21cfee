"""Two processes, one output: the second is refused before it spends time on it."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError, TimmMVHybridError, writing

try:
    import fcntl
except ImportError:  # Windows, where the file's name alone decides in the end
    fcntl = None  # type: ignore[assignment]

# a file system without locks; there too the file's name decides in the end
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_MAX_TRIES = 100


@contextmanager
def claimed(output: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes from writing an output while the block runs.

    The claim is a lock of the operating system on a hidden file beside the output. The lock ends with the process,
    however that ends, so that the file of a killed run blocks nobody. Where a file system has no locks, or only locks
    within one machine as on some NFS mounts, nothing is refused here.

    Args:
        output: File or folder to write; its parent folder exists.
        wait: Wait until the other process is done; for claims that last a moment.

    Raises:
        OutputError: Another process writes it, or its folder takes no files.
    """
    output = Path(output)
    lock = output.with_name(f".{output.name}.lock")
    if fcntl is None:
        yield
        return
    with writing(output):
        descriptor = _lock(output, lock, wait)
    try:
        yield
    finally:
        # removed while it is locked: a process that opened it before finds that the file no longer has that name
        with suppress(OSError):
            lock.unlink()
        with suppress(OSError):
            # processes that were forked meanwhile hold it too, and would keep it unless it is unlocked
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def check_unclaimed(output: str | Path) -> None:
    """Finds out whether another process writes an output.

    Raises:
        OutputError: One does.
    """
    if Path(output).with_name(f".{Path(output).name}.lock").exists():
        with claimed(output):
            pass


def check_output_file(path: Path, *, overwrite: bool, error: type[TimmMVHybridError]) -> None:
    """Finds out whether a file can be written, before time is spent on its content.

    Args:
        path: The file to write.
        overwrite: Whether an existing file may be replaced.
        error: What to raise if the folder is missing or not writable, or the file may not be replaced.

    Raises:
        OutputError: Another process writes it.
    """
    if not path.parent.is_dir():
        raise error(f"{path}: the output folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise error(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise error(f"{path}: exists already; replace it with `overwrite=True`")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise error(f"{path}: the output folder {path.parent} is not writable")
    check_unclaimed(path)


def _lock(output: Path, lock: Path, wait: bool) -> int:
    """Opens the lock file and locks it, making sure that it still has its name afterwards."""
    for _ in range(_MAX_TRIES):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, output, wait)
            if _is_named(descriptor, lock):
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OutputError(f"{output}: other processes keep writing it; choose another place")


def _take(descriptor: int, output: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            raise OutputError(
                f"{output}: {owner} is writing it; wait until that is done, or choose another place"
            ) from error
        if error.errno not in _NO_LOCKS:
            raise


def _is_named(descriptor: int, lock: Path) -> bool:
    """Says whether an open file still has its name; its owner may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False
