"""Embedding h5, written and read: batches of embeddings → one file, complete or absent → embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..data import DataError, PatchSource
from ..data.h5_file import H5File, attributes, number, read_coords
from ..data.remote_path import AnyPath, as_path
from ..runtime.atomic_file import check_output_file
from ..runtime.errors import EvaluationError, check_space
from ..runtime.h5_output import H5Output

_ROWS_PER_CHUNK = 256
_ROWS_PER_BATCH = 16 * _ROWS_PER_CHUNK
_EMBEDDINGS = "embeddings"
# CLAM and TRIDENT call them features
_DATASETS = ("features", _EMBEDDINGS)


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredEmbeddings:
    """The content of an embedding h5.

    Attributes:
        path: The file.
        embeddings: (N, D) float32, finite.
        barcodes: One for each row; None where there are none.
        model: The model's timm name, or ``unknown``.
        weights: As in ``Backbone``, or ``unknown``.
        weights_sha256: As in ``Backbone``, or ``unknown``.
    """

    path: Path
    embeddings: NDArray[np.float32]
    barcodes: list[str] | None
    model: str
    weights: str
    weights_sha256: str


def read_embeddings(file: str | Path) -> StoredEmbeddings:
    """Reads an embedding h5.

    Args:
        file: Holds ``embeddings`` (this package) or ``features`` (CLAM, TRIDENT), (N, D) or (1, N, D).

    Raises:
        DataError: If the file cannot be read or holds no embeddings, or values are not finite.
    """
    file = Path(file)
    with _opened(file) as (content, stored):
        found = np.asarray(stored[()])
        barcodes = _barcodes(content)
        about = {
            key: str(content.attrs.get(key, "unknown")) for key in ("model", "weights", "weights_sha256")
        }
    if found.ndim == 3:
        found = found[0]
    _check_finite(file, found)
    embeddings = found.astype(np.float32, copy=False)
    return StoredEmbeddings(path=file, embeddings=embeddings, barcodes=barcodes, **about)


def read_batches(file: str | Path, num_rows: int = _ROWS_PER_BATCH) -> Iterator[NDArray[np.float32]]:
    """Reads an embedding h5 a few rows at a time, so that memory does not grow with the number of patches.

    Args:
        file: As in ``read_embeddings``.
        num_rows: Rows of each batch, the last one's excepted.

    Yields:
        (num_rows, D) float32, finite, in the file's order.

    Raises:
        DataError: As ``read_embeddings``, at the first batch that is damaged.
    """
    file = Path(file)
    with _opened(file) as (_, stored):
        for start in range(0, stored.shape[-2], num_rows):
            yield _read(file, stored, start, start + num_rows)


def read_rows(file: str | Path, start: int, stop: int) -> NDArray[np.float32]:
    """Reads some rows of an embedding h5, (stop - start, D) float32, finite.

    Raises:
        DataError: As ``read_embeddings``, of these rows.
    """
    with _opened(Path(file)) as (_, stored):
        return _read(Path(file), stored, start, stop)


def _read(file: Path, stored: h5py.Dataset, start: int, stop: int) -> NDArray[np.float32]:
    found = np.asarray(stored[0, start:stop] if stored.ndim == 3 else stored[start:stop])
    _check_finite(file, found, start)
    return found.astype(np.float32, copy=False)


def read_barcodes(file: str | Path) -> list[str] | None:
    """Reads the barcodes of an embedding h5; None where there are none.

    Raises:
        DataError: As ``read_embeddings``.
    """
    with _opened(Path(file)) as (content, _):
        return _barcodes(content)


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredPatches:
    """What an embedding h5 says of its patches, beside the embeddings.

    Attributes:
        path: The file.
        num_patches: Rows.
        embedding_dim: Width of the embeddings.
        coords: Top-left corners in level-0 px, (N, 2) int64 as x, y; None where there are none.
        barcodes: One for each patch; None where there are none.
        paths: Of the images, where the patches are those of a folder; None otherwise.
        patch_size_px: Side of a patch in px; None where it is not stated.
        patch_size_level0: The same in level-0 px; None where it is not stated.
        resolution_um_per_px: Of a patch; None where it is not stated.
        model: As in ``StoredEmbeddings``.
        attributes: All that the file states, in plain numbers, texts and lists.
    """

    path: Path
    num_patches: int
    embedding_dim: int
    coords: NDArray[np.int64] | None
    barcodes: list[str] | None
    paths: list[str] | None
    patch_size_px: int | None
    patch_size_level0: float | None
    resolution_um_per_px: float | None
    model: str
    attributes: dict[str, Any]

    @property
    def um_per_px_level0(self) -> float | None:
        """Size of a level-0 px in µm; None where it does not follow from what is stated."""
        if not (self.patch_size_px and self.patch_size_level0 and self.resolution_um_per_px):
            return None
        return self.resolution_um_per_px * self.patch_size_px / self.patch_size_level0


def read_patches(file: str | Path) -> StoredPatches:
    """Reads everything of an embedding h5 but the embeddings.

    Args:
        file: As in ``read_embeddings``.

    Raises:
        DataError: If the file cannot be read or holds no embeddings, or what it says of its patches does not fit them.
    """
    file = Path(file)
    h5 = H5File(file)
    with _opened(file) as (content, stored):
        num_patches, width = (int(length) for length in stored.shape[-2:])
        found = content.get("coords")
        # TRIDENT adds a first axis of length 1 to features alone
        coords = read_coords(h5, found, num_patches) if isinstance(found, h5py.Dataset) else None
        stated = attributes(h5, *([found] if coords is not None else []))
        h5.close()
        side = number(h5, stated, "patch_size_px")
        side_level0 = number(h5, stated, "patch_size_level0")
        if side is None and side_level0 is not None:
            # TRIDENT's name for it; CLAM's means px of a level, and comes without the other
            side = number(h5, stated, "patch_size")
        paths = content["paths"].asstr()[()].tolist() if "paths" in content else None
        return StoredPatches(
            path=file,
            num_patches=num_patches,
            embedding_dim=width,
            coords=coords,
            barcodes=_barcodes(content),
            paths=paths,
            patch_size_px=None if side is None else round(side),
            patch_size_level0=side_level0,
            resolution_um_per_px=number(h5, stated, "resolution_um_per_px"),
            model=str(stated.get("model", "unknown")),
            attributes={name: _plain(value) for name, value in sorted(stated.items())},
        )


def _plain(value: Any) -> Any:
    """Turns an attribute into what JSON holds."""
    found = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return found if isinstance(found, bool | int | float | str | list) else str(found)


def holds(file: Path, source: PatchSource) -> bool:
    """Finds out whether a file is there, whole, and of all patches of a source; reads a few rows at a time."""
    if not file.is_file():
        return False
    try:
        return sum(map(len, read_batches(file))) == len(source) and read_barcodes(file) == source.barcodes
    except DataError:
        return False


def _barcodes(content: h5py.File) -> list[str] | None:
    named = "barcodes" in content and h5py.check_string_dtype(content["barcodes"].dtype) is not None
    return content["barcodes"].asstr()[()].ravel().tolist() if named else None


@contextmanager
def _opened(file: Path) -> Iterator[tuple[h5py.File, h5py.Dataset]]:
    """Opens an embedding h5 and finds its embeddings, (N, D) or (1, N, D)."""
    try:
        with h5py.File(file, "r") as content:
            name = next((name for name in _DATASETS if name in content), None)
            if name is None:
                raise DataError(f"{file}: has neither 'features' nor 'embeddings'")
            found = content[name]
            shape = found.shape[1:] if found.shape[:1] == (1,) and found.ndim == 3 else found.shape
            if len(shape) != 2 or 0 in shape or found.dtype.kind != "f":
                raise DataError(
                    f"{file}: '{name}' must be (patches, dim) floats, not {found.shape} {found.dtype}"
                )
            yield content, found
    except OSError as error:
        raise DataError(f"{file}: cannot be opened as an h5 file ({error})") from error


def _check_finite(file: Path, found: NDArray[Any], start: int = 0) -> None:
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{file}: patch {start + int((~finite).argmax())} holds NaN or infinite values; embed the patches again"
        )


def check_output(output: str | Path, *, overwrite: bool, source: str | AnyPath | None = None) -> None:
    """Checks that an output file can be written, before time is spent on its content.

    Args:
        output: The file to write.
        overwrite: Whether an existing file may be replaced.
        source: The input, which is never replaced.

    Raises:
        EvaluationError: If the folder is missing or not writable, or the file exists and may not be replaced.
        OutputError: If another process writes it.
    """
    output = Path(output)
    check_not_input(output, source)
    check_output_file(output, overwrite=overwrite, error=EvaluationError)


def check_not_input(output: Path, source: str | AnyPath | None) -> None:
    """Refuses to replace the input.

    Raises:
        EvaluationError: The output is the input.
    """
    given = None if source is None else as_path(source)
    if isinstance(given, Path) and output.exists() and given.exists() and output.samefile(given):
        raise EvaluationError(f"{output}: is the input itself; choose another `output`")


class EmbeddingWriter(H5Output):
    """Collects embeddings in a temporary file beside the output and renames it when all is written.

    Used as a context manager; leaving it without ``finish``, by whatever exception, removes the temporary file.

    Args:
        output: The file to write.
        replace: Whether a file of that name may be replaced.
        num_rows: Embeddings to expect, so that a disk too small for them is noticed at the first batch; 0 if unknown.

    Raises:
        OutputError: If the folder does not take files.
    """

    def __init__(self, output: str | Path, *, replace: bool = True, num_rows: int = 0) -> None:
        super().__init__(output, replace=replace)
        self.output = Path(output)
        self.num_rows = num_rows
        self._embeddings: h5py.Dataset | None = None
        self._kept: list[int] = []

    def __enter__(self) -> EmbeddingWriter:
        """Returns the writer."""
        return self

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings, 0 before the first batch."""
        return 0 if self._embeddings is None else int(self._embeddings.shape[1])

    def append(self, embeddings: NDArray[np.float32], indices: Sequence[int]) -> None:
        """Adds one batch, (B, D) float32, and which patch each row is.

        Raises:
            OutputError: If the disk does not take it, or cannot take all that are to come.
        """
        if self._embeddings is None:
            width = embeddings.shape[1]
            check_space(self.output, self.num_rows * width * embeddings.itemsize)
            self._embeddings = self.file.create_dataset(
                _EMBEDDINGS,
                shape=(0, width),
                maxshape=(None, width),
                # whole chunks are stored, so that those of a small slide are no larger than it
                chunks=(min(_ROWS_PER_CHUNK, self.num_rows or _ROWS_PER_CHUNK), width),
                dtype=np.float32,
            )
        start = len(self._kept)
        self._embeddings.resize(start + len(embeddings), axis=0)
        self._embeddings[start:] = embeddings
        self.check()
        self._kept.extend(indices)

    def describe(self, source: PatchSource, attributes: Mapping[str, Any]) -> None:
        """Adds attributes, and coordinates, barcodes and paths of the patches that were kept."""
        for name, value in attributes.items():
            if value is not None:
                self.file.attrs[name] = value
        file = self.file
        kept = np.asarray(self._kept)
        strings = h5py.string_dtype("utf-8")
        if source.coords is not None:
            file.create_dataset("coords", data=source.coords[kept], dtype=np.int64)
        if source.barcodes is not None:
            barcodes = np.array(source.barcodes, dtype=object)[kept, None]
            file.create_dataset("barcodes", data=barcodes, dtype=strings)
        if source.paths is not None:
            file.create_dataset("paths", data=np.array(source.paths, dtype=object)[kept], dtype=strings)
