"""Memory that readers and devices share, for batches on their way: a fixed number of buffers, so that memory is bounded."""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class BatchBuffer:
    """Memory without a name: it is gone with the last process that has it, however that ends.

    Pickled by multiprocessing, it is the same memory in the other process.

    Args:
        number: Tells it from the other buffers of a run.
        num_bytes: Its size.
    """

    def __init__(self, number: int, num_bytes: int) -> None:
        self.number = number
        self.num_bytes = num_bytes
        self._tag = f"timm_mvhybrid-{os.getpid()}-{number}"
        self._map(_nameless_file(self._tag, num_bytes))

    def _map(self, descriptor: int) -> None:
        self._descriptor = descriptor
        if descriptor < 0:
            # Windows shares memory by a name that ends with its last user
            named: Any = mmap.mmap
            self._memory: mmap.mmap = named(-1, self.num_bytes, self._tag)
        else:
            self._memory = mmap.mmap(descriptor, self.num_bytes)

    def __getstate__(self) -> tuple[int, int, str, Any]:
        """Hands over the memory itself."""
        shared = None if self._descriptor < 0 else reduction.DupFd(self._descriptor)
        return self.number, self.num_bytes, self._tag, shared

    def __setstate__(self, state: tuple[int, int, str, Any]) -> None:
        """Maps what was handed over."""
        self.number, self.num_bytes, self._tag, shared = state
        self._map(-1 if shared is None else shared.detach())

    def pixels(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Looks at it as pixels, (B, 3, H, W) uint8."""
        return np.ndarray(shape, np.uint8, self._memory)

    def close(self) -> None:
        """Gives the memory up; an array that still looks at it keeps it."""
        with suppress(BufferError):
            self._memory.close()
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def _nameless_file(tag: str, num_bytes: int) -> int:
    """Opens memory that has no name in any folder; -1 where there is none."""
    if hasattr(os, "memfd_create"):
        # not in /dev/shm, of which containers have 64 MB
        descriptor = os.memfd_create(tag)
        os.ftruncate(descriptor, num_bytes)
        return descriptor
    if os.name == "nt":
        return -1
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), num_bytes)
        return os.dup(file.fileno())


class Buffers:
    """A fixed number of buffers, each made when it is first needed.

    Args:
        limit: How many there may be at a time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._num_made = 0
        self._free: list[BatchBuffer] = []
        self._used: dict[int, BatchBuffer] = {}

    @property
    def num_left(self) -> int:
        """How many can be taken now."""
        return self.limit - len(self._used)

    def take(self, num_bytes: int) -> BatchBuffer:
        """Takes one of at least this size, of which one must be left."""
        index = next((i for i, buffer in enumerate(self._free) if buffer.num_bytes >= num_bytes), None)
        if index is not None:
            buffer = self._free.pop(index)
        else:
            if len(self._used) + len(self._free) >= self.limit:
                # slides with larger patches follow
                self._free.pop().close()
            self._num_made += 1
            buffer = BatchBuffer(self._num_made, num_bytes)
        self._used[buffer.number] = buffer
        return buffer

    def give_back(self, buffer: BatchBuffer) -> None:
        """Returns one whose content is not needed any more."""
        self._free.append(self._used.pop(buffer.number))

    def close(self) -> None:
        """Gives all up."""
        for buffer in (*self._free, *self._used.values()):
            buffer.close()
        self._free.clear()
        self._used.clear()
