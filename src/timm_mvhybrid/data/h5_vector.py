"""Long packed vectors of h5 files, unpacked by several threads."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

_FILTERS = ((h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE), (h5py.h5z.FILTER_DEFLATE,))
"""What is undone here, each in the order in which HDF5 applied it."""
_SMALLEST_CHUNK_BYTES = 1 << 14
"""Below it handing a chunk to a thread takes as long as unpacking it."""


class H5Vector:
    """A dataset of one dimension that is read from its start to its end, range after range.

    HDF5 does one thing at a time, so that it unpacks on one core however many there are. Here it only reads the packed
    chunks, and zlib, which works without the interpreter's lock, unpacks them side by side. Datasets and chunks that are
    packed in other ways than by zlib, as Space Ranger packs its matrices, with or without shuffled bytes, are left to HDF5.

    Args:
        dataset: (N,).
        threads: They unpack.
    """

    def __init__(self, dataset: h5py.Dataset, threads: Executor) -> None:
        self._dataset, self._threads = dataset, threads
        properties = dataset.id.get_create_plist()
        filters = tuple(properties.get_filter(index)[0] for index in range(properties.get_nfilters()))
        self._is_shuffled = len(filters) > 1
        self._chunk_length = 0
        if filters in _FILTERS and dataset.ndim == 1 and dataset.dtype.kind in "iuf":
            length = dataset.chunks[0]
            self._chunk_length = length if length * dataset.dtype.itemsize >= _SMALLEST_CHUNK_BYTES else 0
        # number and values of the chunk in which the range before ended
        self._last: tuple[int, NDArray[Any]] | None = None

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Reads the values from ``first`` to before ``last``.

        Raises:
            OSError: If the file ends early, or HDF5 cannot read it.
            ValueError: If a chunk has another length than it should.
            RuntimeError, zlib.error: If a chunk is damaged.
        """
        last = min(last, len(self._dataset))
        if not self._chunk_length or first >= last:
            return np.asarray(self._dataset[first:last])
        begin, end = first // self._chunk_length, (last - 1) // self._chunk_length + 1
        parts = [] if self._last is None or self._last[0] != begin else [self._last[1]]
        coming = [self._threads.submit(self._chunk, number) for number in range(begin + len(parts), end)]
        parts += [chunk.result() for chunk in coming]
        self._last = end - 1, parts[-1]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values[first - begin * self._chunk_length : last - begin * self._chunk_length]

    def _chunk(self, number: int) -> NDArray[Any]:
        """Reads and unpacks a chunk; of the last one all values, also those beyond the end of the dataset."""
        start, dtype = number * self._chunk_length, self._dataset.dtype
        stored = self._dataset.id.get_chunk_info_by_coord((start,))
        # a chunk that was never written has no place in the file; the mask names filters that were left out
        if stored.byte_offset is None or stored.filter_mask:
            return np.asarray(self._dataset[start : start + self._chunk_length])
        _, packed = self._dataset.id.read_direct_chunk((start,))
        num_bytes = self._chunk_length * dtype.itemsize
        unpacked = _unpacker()(packed, num_bytes)
        if len(unpacked) != num_bytes:
            raise ValueError(f"a chunk of {self._dataset.name} has not the {num_bytes} bytes that it should")
        if self._is_shuffled:
            unpacked = np.frombuffer(unpacked, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        return np.frombuffer(unpacked, dtype)


@functools.cache
def _unpacker() -> Callable[[bytes, int], bytes | bytearray]:
    """Chooses who unpacks at most so many bytes and perhaps one more: libdeflate where it is installed, in a third of the time."""
    try:
        import imagecodecs

        if imagecodecs.DEFLATE.available:
            return lambda packed, num_bytes: imagecodecs.deflate_decode(packed, out=num_bytes)
    except (ImportError, AttributeError):  # tiffslide brings it, and some builds leave codecs out
        pass
    return lambda packed, num_bytes: zlib.decompressobj().decompress(packed, num_bytes + 1)
