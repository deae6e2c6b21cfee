"""Space Ranger's matrix of counts, HDF5 or Matrix Market → spots × genes, all at once or some spots at a time.

Read without scanpy: its reader of HDF5 takes the whole matrix at once, and in float32, its reader of Matrix Market takes a
gene of the name NA for a missing value; the tests hold both to each other.
"""

from __future__ import annotations

import gzip
import inspect
import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..data.h5_file import H5File
from ..data.h5_vector import H5Vector
from ..runtime.cores import num_usable_cores
from ..runtime.errors import DataError
from ..runtime.extras import require
from .counts import not_counts
from .csv_tables import GZIP_MAGIC, read_tabs
from .feature_table import FeatureTable

_H5_DATASETS = ("barcodes", "data", "indices", "indptr", "shape", "features/id", "features/name")
_BARCODES_AT_A_TIME = 1 << 17
_VALUES_AT_A_TIME = 1 << 20
_KIND = "Space Ranger's matrix of counts (filtered_feature_bc_matrix.h5, or the folder filtered_feature_bc_matrix)"
_MTX_FILES = {"matrix": "matrix.mtx", "features": "features.tsv", "barcodes": "barcodes.tsv"}


@dataclass(frozen=True, eq=False, kw_only=True)
class MatrixChunk:
    """Some spots of a matrix.

    Attributes:
        barcodes: Their names, bytes.
        values: Raw counts, (spots, features), SciPy CSR.
    """

    barcodes: NDArray[np.bytes_]
    values: Any


class TenXMatrix(ABC):
    """A matrix of counts.

    Attributes:
        path: The file or folder.
        features: Its features, and the genes that they are.
        num_barcodes: Number of spots.
    """

    path: Path
    features: FeatureTable
    num_barcodes: int

    @abstractmethod
    def chunks(self) -> Iterator[MatrixChunk]:
        """Yields the counts, some spots at a time, in the order of the file.

        Raises:
            DataError: If the file is damaged or holds what are no counts.
        """

    @abstractmethod
    def feature_names(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields identifier and symbol of each feature."""

    def check_barcodes(self, barcodes: Collection[bytes], known: Collection[bytes], positions: Path) -> None:
        """Checks that spots have places.

        Args:
            barcodes: Of the matrix.
            known: Those that have a place.
            positions: The table of places.

        Raises:
            DataError: If a spot has none; it says so if the matrix is transposed.
        """
        missing = [barcode for barcode in barcodes if barcode not in known]
        if not missing:
            return
        if len(missing) == len(barcodes):
            if any(name in known for names in self.feature_names() for name in names):
                raise DataError(
                    f"{self.path}: is transposed: what it calls features are the spots of {positions.name}; write it with genes "
                    "as features and spots as barcodes"
                )
            first = next(iter(known)).decode()
            raise DataError(
                f"{self.path} and {positions} share no barcode ('{missing[0].decode()}' …, '{first}' …); give the files of one run"
            )
        raise DataError(
            f"{positions}: lacks the barcode '{missing[0].decode()}' of {self.path.name} ({len(missing)} of {len(barcodes)} are "
            "missing); give the files of one run"
        )


class H5Matrix(TenXMatrix):
    """A matrix in HDF5; it may be larger than memory.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be opened, is not such a matrix, or is transposed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = H5File(self.path)
        try:
            group = self._file.handle.get("matrix")
        except DataError as error:
            raise DataError(f"{error}; copy it again: it should be {_KIND}") from error
        missing = [
            name for name in _H5_DATASETS if group is None or not isinstance(group.get(name), h5py.Dataset)
        ]
        if missing:
            raise DataError(f"{self.path}: has no dataset 'matrix/{missing[0]}'; give {_KIND}")
        self._group = group
        with _reading(self.path):
            self._ids, self._symbols = (group[f"features/{name}"][()] for name in ("id", "name"))
            types = group["features/feature_type"][()] if "features/feature_type" in group else ()
            rows, columns = (int(length) for length in group["shape"][()])
        self.num_barcodes = len(group["barcodes"])
        _check_shape(self.path, (rows, columns), len(self._ids), self.num_barcodes)
        for name, found in (("name", self._symbols), ("feature_type", types)):
            if len(found) and len(found) != len(self._ids):
                raise DataError(
                    f"{self.path}: features/{name} has {len(found)} values for {len(self._ids)} features; copy it again"
                )
        if len(group["indptr"]) != self.num_barcodes + 1:
            what = (
                "is transposed: its columns are"
                if len(group["indptr"]) == rows + 1
                else "has columns that are not"
            )
            raise DataError(
                f"{self.path}: {what} features instead of spots (indptr has {len(group['indptr'])} values for "
                f"{self.num_barcodes} barcodes); write it as Space Ranger does, a column a spot"
            )
        if len(group["data"]) != len(group["indices"]):
            raise DataError(
                f"{self.path}: has {len(group['data'])} values and {len(group['indices'])} indices; copy it again"
            )
        self.features = FeatureTable.of(self.path, _texts(self._ids), _texts(self._symbols), _texts(types))

    def feature_names(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields identifier and symbol of each feature."""
        for names in zip(self._ids, self._symbols, strict=True):
            identifier, symbol = (name if isinstance(name, bytes) else str(name).encode() for name in names)
            yield identifier, symbol

    def chunks(self) -> Iterator[MatrixChunk]:
        """Yields the counts, some spots at a time."""
        with ThreadPoolExecutor(num_usable_cores()) as threads:
            yield from self._chunks(*(H5Vector(self._group[name], threads) for name in ("data", "indices")))

    def _chunks(self, data: H5Vector, indices: H5Vector) -> Iterator[MatrixChunk]:
        for start in range(0, self.num_barcodes, _BARCODES_AT_A_TIME):
            stop = min(start + _BARCODES_AT_A_TIME, self.num_barcodes)
            with _reading(self.path):
                barcodes = np.asarray(self._group["barcodes"][start:stop], dtype=np.bytes_)
                ends = self._group["indptr"][start : stop + 1].astype(np.int64)
            if (np.diff(ends) < 0).any() or ends[-1] > len(self._group["data"]) or ends[0] < 0:
                raise DataError(
                    f"{self.path}: its indptr does not rise from 0 to its values' number; copy it again"
                )
            begin = 0
            while begin < len(barcodes):
                # as many spots as have so many values, and one at least
                end = int(np.searchsorted(ends, ends[begin] + _VALUES_AT_A_TIME, side="right")) - 1
                end = min(max(end, begin + 1), len(barcodes))
                values = self._values(data, indices, ends[begin : end + 1])
                yield MatrixChunk(barcodes=barcodes[begin:end], values=values)
                begin = end

    def _values(self, of_data: H5Vector, of_indices: H5Vector, ends: NDArray[np.int64]) -> Any:
        first, last = int(ends[0]), int(ends[-1])
        with _reading(self.path):
            data, indices = (vector.read(first, last) for vector in (of_data, of_indices))
        num_features = len(self._ids)
        if len(indices) and not (0 <= int(indices.min()) and int(indices.max()) < num_features):
            raise DataError(
                f"{self.path}: has values of the features {int(indices.min())} to {int(indices.max())}, and {num_features} "
                "features; copy it again"
            )
        values = require("scipy.sparse").csr_matrix(
            # 32 bits hold every index, and half the memory
            (data, indices.astype(np.int32), (ends - first).astype(np.int32)),
            shape=(len(ends) - 1, num_features),
        )
        _check_counts(self.path, values)
        return values


class MtxMatrix(TenXMatrix):
    """A matrix in Matrix Market format with its two tables, each plain or compressed, held in memory.

    Args:
        path: The folder.

    Raises:
        DataError: If a file is missing or damaged, or the matrix is transposed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files = mtx_files(self.path)
        rows = read_tabs(self._files["features"])
        narrow = next((row for row in rows if len(row) < 2), None)
        if narrow is not None:
            raise DataError(
                f"{self._files['features']}: '{narrow[0]}' has no second column; give identifier and symbol of each feature, with "
                "a tab between them"
            )
        self._barcodes = np.array(
            [row[0].encode() for row in read_tabs(self._files["barcodes"])], dtype=np.bytes_
        )
        self.num_barcodes = len(self._barcodes)
        self._features = [(row[0], row[1]) for row in rows]
        ids, symbols = ([row[column] for row in rows] for column in (0, 1))
        types = [row[2] for row in rows if len(row) > 2]
        self.features = FeatureTable.of(
            self._files["features"], ids, symbols, types if len(types) == len(ids) else ()
        )
        with _reading(self._files["matrix"]):
            num_rows, num_columns, *_ = require("scipy.io").mminfo(self._readable())
        _check_shape(self._files["matrix"], (num_rows, num_columns), len(ids), self.num_barcodes)

    def feature_names(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields identifier and symbol of each feature."""
        yield from ((identifier.encode(), symbol.encode()) for identifier, symbol in self._features)

    def chunks(self) -> Iterator[MatrixChunk]:
        """Yields all counts."""
        with _reading(self._files["matrix"]):
            values = require("scipy.sparse").csr_matrix(_read_matrix_market(self._readable()).T)
        _check_counts(self._files["matrix"], values)
        yield MatrixChunk(barcodes=self._barcodes, values=values)

    def _readable(self) -> Path | io.BytesIO:
        """Makes what SciPy reads: it judges by the name whether a file is compressed, and some are called otherwise."""
        file = self._files["matrix"]
        with file.open("rb") as stream:
            is_compressed = stream.read(2) == GZIP_MAGIC
        if is_compressed == (file.suffix == ".gz"):
            return file
        content = file.read_bytes()
        return io.BytesIO(gzip.decompress(content) if is_compressed else content)


def _read_matrix_market(file: Path | io.BytesIO) -> Any:
    """Reads a sparse matrix, or an array; SciPy changes which of them it gives, and warns where it is not told."""
    read = require("scipy.io").mmread
    options = {"spmatrix": False} if "spmatrix" in inspect.signature(read).parameters else {}
    return read(file, **options)


def open_matrix(path: Path) -> TenXMatrix:
    """Opens a matrix by what it is: a folder holds Matrix Market files."""
    return MtxMatrix(path) if path.is_dir() else H5Matrix(path)


def matrix_files(path: Path) -> list[Path]:
    """Lists the files of a matrix."""
    return list(mtx_files(path).values()) if path.is_dir() else [path]


def mtx_files(folder: Path) -> dict[str, Path]:
    """Finds the files of a matrix in Matrix Market format; raises DataError where one is missing."""
    found = {}
    for kind, name in _MTX_FILES.items():
        # earlier versions called features genes
        names = [name, *(["genes.tsv"] if kind == "features" else [])]
        files = [folder / f"{each}{end}" for each in names for end in (".gz", "")]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise DataError(f"{files[0]}: missing; give {_KIND}")
        found[kind] = file
    return found


def _check_shape(path: Path, shape: tuple[int, int], num_features: int, num_barcodes: int) -> None:
    if shape == (num_features, num_barcodes):
        if 0 in shape:
            raise DataError(
                f"{path}: is empty ({num_features} features × {num_barcodes} spots); give {_KIND}"
            )
        return
    if shape == (num_barcodes, num_features):
        raise DataError(
            f"{path}: is transposed: {shape[0]} spots × {shape[1]} features; write it as Space Ranger does, features × spots"
        )
    raise DataError(
        f"{path}: is {shape[0]} × {shape[1]}, and there are {num_features} features and {num_barcodes} barcodes; give the files "
        "of one run"
    )


def _check_counts(path: Path, values: Any) -> None:
    data = values.data
    is_whole = data.dtype.kind in "iub"
    wrong = np.flatnonzero(data < 0 if is_whole else not_counts(values))
    if data.dtype.kind not in "iufb" or len(wrong):
        example = f" ({data[wrong[0]]})" if len(wrong) else ""
        raise DataError(f"{path}: holds values that are not counts{example}; give raw counts")


def _texts(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what libraries raise on a broken file into one sentence."""
    try:
        yield
    except DataError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        OverflowError,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: is truncated or damaged ({reason}); copy it again: {_KIND}") from error
