"""Embedding h5: batches of embeddings → one file that is either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..data import PatchSource
from ..runtime.claim import check_unclaimed
from ..runtime.errors import EvaluationError, check_space
from ..runtime.h5_output import H5Output

_ROWS_PER_CHUNK = 256


def check_output(output: str | Path, *, overwrite: bool, source: str | Path | None = None) -> None:
    """Finds out whether an output file can be written, before time is spent on its content.

    Args:
        output: The file to write.
        overwrite: Whether an existing file may be replaced.
        source: The input, which is never replaced.

    Raises:
        EvaluationError: If the folder is missing or not writable, or the file exists and may not be replaced.
        OutputError: If another process writes it.
    """
    output = Path(output)
    folder = output.parent
    if not folder.is_dir():
        raise EvaluationError(f"{output}: the output folder {folder} does not exist; create it first")
    if output.is_dir():
        raise EvaluationError(f"{output}: is a folder; name a file")
    if output.exists():
        if source is not None and os.path.samefile(output, source):
            raise EvaluationError(f"{output}: is the input itself; choose another --output")
        if not overwrite:
            raise EvaluationError(f"{output}: exists already; replace it with --overwrite")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EvaluationError(f"{output}: the output folder {folder} is not writable")
    check_unclaimed(output)


class EmbeddingWriter:
    """Collects embeddings in a temporary file beside the output and renames it when all is written.

    Used as a context manager; leaving it without `finish`, by whatever exception, removes the temporary file.

    Args:
        output: The file to write.
        replace: Whether a file of that name may be replaced.
        num_rows: Embeddings to expect, so that a disk too small for them shows at the first batch; 0 if unknown.

    Raises:
        OutputError: If the folder does not take files.
    """

    def __init__(self, output: str | Path, *, replace: bool = True, num_rows: int = 0) -> None:
        self.output = Path(output)
        self.num_rows = num_rows
        self._h5 = H5Output(self.output, replace=replace)
        self._embeddings: h5py.Dataset | None = None
        self._kept: list[int] = []

    def __enter__(self) -> EmbeddingWriter:
        """Returns the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Removes what was not finished."""
        self._h5.__exit__(kind, error, traceback)

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings, 0 before the first batch."""
        return 0 if self._embeddings is None else int(self._embeddings.shape[1])

    def append(self, embeddings: NDArray[np.float32], indices: Sequence[int]) -> None:
        """Adds one batch.

        Args:
            embeddings: (B, D) float32.
            indices: The patch of each row, B of them.

        Raises:
            OutputError: If the disk does not take it, or cannot take all that are to come.
        """
        if self._embeddings is None:
            width = embeddings.shape[1]
            check_space(self.output, self.num_rows * width * embeddings.itemsize)
            self._embeddings = self._h5.file.create_dataset(
                "embeddings",
                shape=(0, width),
                maxshape=(None, width),
                chunks=(_ROWS_PER_CHUNK, width),
                dtype=np.float32,
            )
        start = len(self._kept)
        self._embeddings.resize(start + len(embeddings), axis=0)
        self._embeddings[start:] = embeddings
        self._h5.check()
        self._kept.extend(indices)

    def finish(self, source: PatchSource, attributes: Mapping[str, Any]) -> None:
        """Adds what is known of the patches that were kept, and puts the file in its place.

        Args:
            source: Where the patches came from.
            attributes: Attributes of the file; None is left out.

        Raises:
            OutputError: If the disk does not take it, or another process wrote a file of that name that may not be
                replaced.
        """
        self._add_patches(source)
        for name, value in attributes.items():
            if value is not None:
                self._h5.file.attrs[name] = value
        self._h5.finish()

    def _add_patches(self, source: PatchSource) -> None:
        file = self._h5.file
        kept = np.asarray(self._kept)
        strings = h5py.string_dtype("utf-8")
        if source.coords is not None:
            file.create_dataset("coords", data=source.coords[kept], dtype=np.int64)
        if source.barcodes is not None:
            barcodes = np.array(source.barcodes, dtype=object)[kept, None]
            file.create_dataset("barcodes", data=barcodes, dtype=strings)
        if source.paths is not None:
            file.create_dataset("paths", data=np.array(source.paths, dtype=object)[kept], dtype=strings)
