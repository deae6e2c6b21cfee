"""Files that one process at a time writes, and that appear whole or not at all: a claim, a temporary name, the real one."""

from __future__ import annotations

import errno
import io
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BusyOutputError, OutputError, TimmMVHybridError

try:
    import fcntl
except ImportError:  # Windows, where the file's name alone decides in the end
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# the errors of file systems without hard links (FAT, SMB, some of FUSE)
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}

# a file system without locks; there too the file's name decides in the end
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_MAX_TRIES = 100
# of ``temporary_name``, and of a folder that is being replaced
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(?:tmp|old)", re.DOTALL)


@contextmanager
def writing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turns errors of the operating system into ``OutputError``, while the block writes a path, and nothing else.

    Raises:
        OutputError: The block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError.of(path, error, num_bytes) from error


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
        OutputError: The disk does not take it.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def temporary_name(path: Path) -> Path:
    """Makes a hidden name next to a path."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


class Leftovers:
    """What killed processes left in a folder under temporary names, as of one listing of it.

    A folder with many outputs is listed once for all of them, not once for each: with 100,000 files the second is hours.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, list[Path]] = {}
        with suppress(OSError):
            for entry in os.scandir(folder):
                name = _TEMPORARY.fullmatch(entry.name)
                if name is not None:
                    self._found.setdefault(name[1], []).append(Path(entry.path))

    def remove(self, path: Path) -> None:
        """Removes those of one file or folder.

        Only for whoever has claimed the path: what another process is writing has such a name, too.
        """
        for leftover in self._found.pop(path.name, ()):
            # what cannot be removed harms nobody
            with suppress(OSError):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of a file or folder, see ``Leftovers.remove``."""
    Leftovers(path.parent).remove(path)


class OutputFile(io.RawIOBase):
    """A file under a temporary name until ``finish``; without that the end of the block removes it.

    ``write`` does not raise what the disk refuses: libraries that write from C, HDF5 above all, cannot handle a write
    that fails beneath them, and end the process. The failure is kept, what follows it is dropped, and ``check`` and
    ``finish`` raise it.

    Args:
        path: The file to write; its folder exists.
        replace: Whether a file of that name may be replaced.

    Raises:
        OutputError: The folder takes no files.
    """

    def __init__(self, path: str | Path, *, replace: bool = True) -> None:
        super().__init__()
        self.path = Path(path)
        self.temporary = temporary_name(self.path)
        self._replace = replace
        self._position = 0
        self._size = 0
        self._wanted = 0
        self._failure: OSError | None = None
        with writing(self.path):
            # readable as the umask allows; "x", so that no other file is opened
            self._file = self.temporary.open("xb+", buffering=0)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Removes what was not finished."""
        # an NFS server may refuse on closing what it accepted before
        with suppress(OSError):
            self._file.close()
        # it cannot be removed from a disk that became read-only, and the first failure is the one to report
        with suppress(OSError):
            self.temporary.unlink()

    def readable(self) -> bool:
        """Returns True; HDF5 reads what it wrote."""
        return True

    def writable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a place, as ``io.RawIOBase.seek``."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Returns the place."""
        return self._position

    def write(self, content: ReadableBuffer, /) -> int:
        """Writes at the place, or drops it if an earlier write failed."""
        rest = memoryview(content).cast("B")
        num_bytes = len(rest)
        if self._failure is None:
            try:
                self._file.seek(self._position)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._failure = error
        self._position += num_bytes
        self._size = max(self._size, self._position)
        self._wanted = max(self._wanted, self._size)
        return num_bytes

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Reads at the place; what was dropped is zeros."""
        target = memoryview(buffer).cast("B")
        self._file.seek(self._position)
        num_bytes = self._file.readinto(target)
        target[num_bytes:] = bytes(len(target) - num_bytes)
        self._position += len(target)
        return len(target)

    def truncate(self, size: int | None = None, /) -> int:
        """Sets the size."""
        self._size = self._position if size is None else size
        if self._failure is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self._failure = error
        return self._size

    def check(self) -> None:
        """Raises what an earlier write met.

        Raises:
            OutputError: The disk did not take it.
        """
        if self._failure is not None:
            # freed first, so that the message states the space that the next try has
            with suppress(OSError):
                self._file.truncate(0)
            raise OutputError.of(self.path, self._failure, self._wanted) from self._failure

    def settle(self) -> None:
        """Waits until the disk has everything, so that whatever can fail in ``finish`` fails here.

        Raises:
            OutputError: The disk did not take it.
        """
        self.check()
        if self._file.closed:
            return
        try:
            # a rename may reach the disk before the bytes do, and then a crash leaves an empty file
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self._failure = error
            self.check()

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
            OutputError: The disk did not take it, or another process wrote a file of that name that may not be
                replaced.
        """
        self.settle()
        with writing(self.path, self._wanted):
            if self._replace:
                self.temporary.replace(self.path)
            else:
                self._take_free_name()

    def _take_free_name(self) -> None:
        """Renames unless the name is taken, which a rename alone cannot."""
        try:
            os.link(self.temporary, self.path)
        except FileExistsError:
            raise _taken(self.path) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if self.path.exists():
                raise _taken(self.path) from None
            self.temporary.replace(self.path)


def _taken(path: Path) -> OutputError:
    return OutputError(
        f"{path}: exists already, because another process wrote it meanwhile; replace it with `overwrite=True`"
    )


def write_file(path: str | Path, content: bytes | str) -> None:
    """Writes a file, bytes or text as UTF-8, that is either complete or as it was before.

    Raises:
        OutputError: The disk does not take it.
    """
    write_files({Path(path): content})


def write_files(contents: Mapping[Path, bytes | str]) -> None:
    """Writes files that belong together, as ``write_file``: if the disk does not take one, none is written.

    Raises:
        OutputError: The disk does not take one; the message names it.
    """
    with ExitStack() as stack:
        files = []
        for path, content in contents.items():
            file = stack.enter_context(OutputFile(path))
            file.write(content.encode() if isinstance(content, str) else content)
            file.settle()
            files.append(file)
        for file in files:
            file.finish()


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
        BusyOutputError: Another process writes it.
        OutputError: Its folder takes no files.
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
            raise BusyOutputError(
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
