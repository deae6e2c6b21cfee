"""Functions of one address → machine code, compiled once and kept on disk, and its runs in several threads.

A kernel is a function of the address of its arguments, integers in a row: sizes, strides, addresses of tensors, and two
counters from which each thread takes its next task and its scratch memory. It never returns to Python before it is done
and holds no lock of Python's, so any number of threads may run it at a time.
"""

import ctypes
import functools
import importlib
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

# the first two arguments of any kernel, which start at 0
NUM_COUNTERS = 2
# a thread's scratch memory starts on a cache line, and on a page of its own
_ALIGNMENT = 4096

_compiling = threading.RLock()
_uncached: list[str] = []


def note_cache_failure(error: Exception) -> None:
    """Keeps what :func:`cache_failure` says."""
    _uncached.append(str(error).splitlines()[0])


def cache_failure() -> str | None:
    """Says why compiled kernels could not be kept on disk, or None if they were, or none was compiled yet."""
    return _uncached[0] if _uncached else None


@functools.cache
def compiled(module: str, name: str) -> "Kernel":
    """Compiles a kernel, or reads it from numba's cache.

    Args:
        module: A module of kernels below this package, such as ``ops.selective_scan.numba_forward``.
        name: Of its function ``make_NAME(stamp)``, which returns the function of an address.

    Returns:
        The kernel.
    """
    with _compiling:
        from numba import cfunc, types
        from numba.core.errors import NumbaWarning

        found = importlib.import_module(module)
        function: Callable[[int], None] = getattr(found, f"make_{name}")(_stamp(found))
        signature = types.void(types.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaWarning)
            try:
                native = cfunc(signature, cache=True)(function)
            except (RuntimeError, OSError) as error:  # no folder that it may write to, or a full disk
                note_cache_failure(error)
                native = cfunc(signature)(function)
        return Kernel(native.address, native)


def _stamp(module: ModuleType) -> int:
    """Returns a number that changes with the sources of a kernel; numba looks at one file of them alone."""
    files = [Path(str(module.__file__)), *sorted(Path(__file__).parent.glob("*.py"))]
    return functools.reduce(lambda crc, file: zlib.crc32(file.read_bytes(), crc), files, 1) | 1


class Kernel:
    """Machine code that works off tasks.

    Args:
        address: Where it is.
        owner: What keeps it there.
    """

    def __init__(self, address: int, owner: object) -> None:
        self.address, self._owner = address, owner
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)

    def run(self, arguments: Sequence[int], num_threads: int) -> None:
        """Works off all tasks.

        Args:
            arguments: Those after the counters.
            num_threads: Threads, no more than there is scratch memory for.
        """
        block = (ctypes.c_int64 * (NUM_COUNTERS + len(arguments)))(*[0] * NUM_COUNTERS, *arguments)
        place = ctypes.addressof(block)
        if num_threads == 1:
            self._call(place)
        elif not _forked and (team := _team()) is not None:
            team(self.address, place, num_threads, 0)
        else:
            others = [pool(num_threads - 1).submit(self._call, place) for _ in range(num_threads - 1)]
            self._call(place)
            for other in others:
                other.result()


def threads_for(tasks: int) -> int:
    """Returns how many of torch's threads this many tasks keep busy, at least one."""
    return max(1, min(torch.get_num_threads(), tasks))


def rooms(num_threads: int, rows: int, row_bytes: int) -> tuple[Tensor, int]:
    """Allocates scratch memory.

    Args:
        num_threads: Threads that need some.
        rows: Rows that each needs.
        row_bytes: Bytes of a row.

    Returns:
        The memory, and the bytes of each thread; its first is at the first multiple of 64 that :func:`aligned` finds.
    """
    each = -(-rows * row_bytes // _ALIGNMENT) * _ALIGNMENT
    return torch.empty(num_threads * each + _ALIGNMENT, dtype=torch.uint8), each


def aligned(room: Tensor) -> int:
    """Returns the first address in scratch memory that is aligned."""
    return -(-room.data_ptr() // _ALIGNMENT) * _ALIGNMENT


@functools.cache
def _team() -> Callable[[int, int, int, int], None] | None:
    """Finds the function by which torch's own threads run a function, or None.

    They wait for work by spinning. Threads besides them would share the cores with that; this way there are none. It
    is OpenMP's entry of GCC, which other libraries of OpenMP have too, looked up in what torch itself is linked to,
    because other packages may bring further copies of it.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        entry = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    entry.restype = None
    entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return entry


_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
_forked = False


def pool(num_threads: int) -> ThreadPoolExecutor:
    """Returns threads of Python, started at the first call."""
    with _pools_lock:
        if num_threads not in _pools:
            _pools[num_threads] = ThreadPoolExecutor(num_threads, thread_name_prefix="timm_mvhybrid")
        return _pools[num_threads]


def _after_fork() -> None:
    """Forgets threads that a child process does not have; OpenMP would wait for its own for ever."""
    global _forked, _pools_lock, _compiling
    _forked = True
    _pools.clear()
    _pools_lock = threading.Lock()
    _compiling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
