"""Shared memory for batches on their way from readers to devices: a fixed number, so that memory is bounded."""

from __future__ import annotations

import shutil
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .source_embedding import DeviceMemoryError

_SHARED = Path("/dev/shm")


class Buffers:
    """A fixed number of buffers, each made when it is first needed.

    Args:
        limit: How many there may be at a time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free: list[SharedMemory] = []
        self._used: dict[str, SharedMemory] = {}

    @property
    def num_left(self) -> int:
        """How many can be taken now."""
        return self.limit - len(self._used)

    def take(self, num_bytes: int) -> SharedMemory:
        """Takes one of at least this size, of which one must be left.

        Raises:
            DeviceMemoryError: The machine has no room for it.
        """
        index = next((i for i, buffer in enumerate(self._free) if buffer.size >= num_bytes), None)
        if index is not None:
            buffer = self._free.pop(index)
        else:
            if len(self._used) + len(self._free) >= self.limit:
                # slides with larger patches follow
                _remove(self._free.pop())
            _check_room(num_bytes)
            buffer = SharedMemory(create=True, size=num_bytes)
        self._used[buffer.name] = buffer
        return buffer

    def give_back(self, buffer: SharedMemory) -> None:
        """Returns one whose content is not needed any more."""
        self._free.append(self._used.pop(buffer.name))

    def close(self) -> None:
        """Frees all."""
        for buffer in (*self._free, *self._used.values()):
            _remove(buffer)
        self._free.clear()
        self._used.clear()


def _check_room(num_bytes: int) -> None:
    """Refuses what shared memory has no room for: writing to it would end a reader without a word."""
    if not _SHARED.is_dir():
        return
    free = shutil.disk_usage(_SHARED).free
    if free < num_bytes:
        raise DeviceMemoryError(
            f"{_SHARED}: a batch between readers and model takes {num_bytes:,} bytes, and {free:,} are free; give the "
            "container more (docker run --shm-size=1g), or lower `batch_size`"
        )


def _remove(buffer: SharedMemory) -> None:
    # an array may still refer to it; then it goes with that
    with suppress(BufferError):
        buffer.close()
    with suppress(FileNotFoundError):
        buffer.unlink()


def pixels_of(buffer: SharedMemory, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Looks at the pixels of a buffer, (B, 3, H, W) uint8."""
    return np.ndarray(shape, np.uint8, buffer.buf)
