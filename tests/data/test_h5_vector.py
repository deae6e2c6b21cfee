"""Packed vectors of h5 files: the values are those that HDF5 reads, however they are packed and cut into ranges."""

import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from timm_mvhybrid.data import h5_vector
from timm_mvhybrid.data.h5_vector import H5Vector

# 20 chunks and a part of one
CHUNK, NUM_VALUES = 4096, 20 * 4096 + 77
PACKINGS = {
    "zlib": {"compression": "gzip"},
    "shuffle and zlib": {"compression": "gzip", "shuffle": True},
    "zlib and a checksum": {"compression": "gzip", "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "shuffle alone": {"shuffle": True},
    "one chunk": {"compression": "gzip", "chunks": (NUM_VALUES,)},
    "small chunks": {"compression": "gzip", "chunks": (100,)},
}


@pytest.fixture(autouse=True, params=["libdeflate", "zlib"])
def unpacker(request, monkeypatch):
    """With and without the package that unpacks faster."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    else:
        pytest.importorskip("imagecodecs")
    h5_vector._unpacker.cache_clear()
    yield
    h5_vector._unpacker.cache_clear()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def write(path, values, **packing):
    with h5py.File(path, "w") as file:
        file.create_dataset("values", data=values, **{"chunks": (CHUNK,), **packing})


def read_all(path, threads, step):
    with h5py.File(path) as file:
        vector = H5Vector(file["values"], threads)
        found = [vector.read(first, first + step) for first in range(0, NUM_VALUES, step)]
    return np.concatenate(found)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", ">i4", "float64"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_values_are_those_of_hdf5(tmp_path, threads, packing, dtype):
    values = np.random.default_rng(0).integers(0, 1000, NUM_VALUES).astype(dtype)
    write(tmp_path / "a.h5", values, **PACKINGS[packing])
    # less than a chunk, a chunk, several and a part, and all
    for step in (1000, CHUNK, 3 * CHUNK + 5, NUM_VALUES + 10):
        np.testing.assert_array_equal(read_all(tmp_path / "a.h5", threads, step), values)


@pytest.mark.parametrize("packing", ["zlib", "shuffle and zlib"])
def test_threads_unpack_what_zlib_packed(tmp_path, packing):
    class Counting(ThreadPoolExecutor):
        chunks = 0

        def submit(self, *arguments):
            self.chunks += 1
            return super().submit(*arguments)

    write(tmp_path / "a.h5", np.arange(NUM_VALUES), **PACKINGS[packing])
    with Counting(2) as threads:
        read_all(tmp_path / "a.h5", threads, CHUNK // 2)
        # each once, though ranges end within chunks
        assert threads.chunks == 21


def test_chunks_that_were_never_written_and_empty_ranges(tmp_path, threads):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset(
            "values", (NUM_VALUES,), "i4", chunks=(CHUNK,), compression="gzip", fillvalue=7
        )
        dataset[5 * CHUNK : 6 * CHUNK] = np.arange(CHUNK)
        expected = dataset[()]
        empty = file.create_dataset(
            "empty", (0,), "i4", chunks=(CHUNK,), maxshape=(None,), compression="gzip"
        )
        assert len(H5Vector(empty, threads).read(0, 10)) == 0
        assert len(H5Vector(dataset, threads).read(20, 20)) == 0
    np.testing.assert_array_equal(read_all(tmp_path / "a.h5", threads, 9999), expected)


def test_a_chunk_that_was_stored_unpacked(tmp_path, threads):
    values = np.arange(NUM_VALUES, dtype="i4")
    write(tmp_path / "a.h5", values, compression="gzip")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        # bit 0 of the mask: the first filter was left out
        file["values"].id.write_direct_chunk(
            (2 * CHUNK,), values[2 * CHUNK : 3 * CHUNK].tobytes(), filter_mask=1
        )
    np.testing.assert_array_equal(read_all(tmp_path / "a.h5", threads, CHUNK), values)


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK + 1])
def test_a_chunk_of_another_length_is_noticed(tmp_path, threads, length):
    write(tmp_path / "a.h5", np.arange(NUM_VALUES, dtype="i4"), compression="gzip")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["values"].id.write_direct_chunk((CHUNK,), zlib.compress(bytes(4 * length)))
    with pytest.raises(
        (ValueError, RuntimeError), match=f"values has not the {4 * CHUNK} bytes|INSUFFICIENT_SPACE"
    ):
        read_all(tmp_path / "a.h5", threads, CHUNK)
