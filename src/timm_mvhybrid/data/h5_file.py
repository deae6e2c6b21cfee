"""Access to h5 files: path → validated arrays, and a handle that survives forks and pickles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from ..runtime.names import unique_positions


class H5File:
    """An h5 file that is opened for reading on first use in each process; the handle is left out of pickles.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle: h5py.File | None = None
        self._process = -1

    @property
    def handle(self) -> h5py.File:
        """The open file of this process.

        Raises:
            DataError: If the file cannot be opened as h5.
        """
        if self._handle is None or self._process != os.getpid():
            # closed first: otherwise a forked process would share the parent's file position in HDF5
            self.close()
            try:
                self._handle = h5py.File(self.path, "r")
            except OSError as error:
                raise DataError(f"{self.path}: cannot be opened as an h5 file ({error})") from error
            self._process = os.getpid()
        return self._handle

    def close(self) -> None:
        """Closes the file; the next access opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the handle out of pickles."""
        return {**self.__dict__, "_handle": None}


def find_dataset(file: H5File, *names: str) -> h5py.Dataset | None:
    """Looks up the first dataset that exists under one of several names.

    Returns:
        The dataset, or None.
    """
    for name in names:
        found = file.handle.get(name)
        if isinstance(found, h5py.Dataset):
            return found
    return None


def attributes(file: H5File, *datasets: h5py.Dataset | None) -> Mapping[str, Any]:
    """Merges the attributes of a file and of its datasets, because writers differ in where they put them.

    Args:
        file: The file; its own attributes come last.
        *datasets: Datasets in falling precedence; None is skipped.
    """
    merged: dict[str, Any] = dict(file.handle.attrs)
    for dataset in reversed(datasets):
        if dataset is not None:
            merged.update(dataset.attrs)
    return {
        key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for key, value in merged.items()
    }


def number(file: H5File, values: Mapping[str, Any], key: str) -> float | None:
    """Reads a positive number from attributes.

    Returns:
        The number (the first one of a pair such as CLAM's downsample), or None if the attribute is absent or says
        that it is unknown (None, NaN, or not above zero).

    Raises:
        DataError: If the attribute is not a number.
    """
    if key not in values or values[key] is None or (isinstance(values[key], str) and values[key] == "None"):
        return None
    try:
        value = float(np.asarray(values[key]).ravel()[0])
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{file.path}: attribute '{key}' is not a number: {values[key]!r}") from error
    return value if value > 0 else None


def read_coords(file: H5File, dataset: h5py.Dataset, num_patches: int | None = None) -> NDArray[np.int64]:
    """Reads and checks patch coordinates.

    Args:
        file: The file, for messages.
        dataset: The coordinates.
        num_patches: Rows there must be; None takes any number.

    Returns:
        Coordinates, (N, 2) int64.

    Raises:
        DataError: If shape, type or values are not those of coordinates.
    """
    where = f"{file.path}: dataset '{dataset.name.lstrip('/')}'"
    if dataset.ndim != 2 or dataset.shape[1] != 2:
        raise DataError(f"{where} must have the shape (N, 2), not {dataset.shape}")
    if dataset.dtype.kind not in "iuf":
        raise DataError(f"{where} must hold numbers, not {dataset.dtype}")
    if num_patches is not None and len(dataset) != num_patches:
        raise DataError(f"{where} has {len(dataset)} rows for {num_patches} patches")
    values = dataset[()]
    if not np.isfinite(values).all():
        raise DataError(f"{where} holds NaN or infinite values")
    coords: NDArray[np.int64] = np.round(values).astype(np.int64)
    return coords


def read_barcodes(file: H5File, dataset: h5py.Dataset, num_patches: int) -> list[str]:
    """Reads and checks one barcode per patch.

    Args:
        file: The file, for messages.
        dataset: The barcodes, (N, 1) or (N,) strings.
        num_patches: Rows there must be.

    Raises:
        DataError: If shape or type do not fit, or a barcode occurs twice.
    """
    where = f"{file.path}: dataset '{dataset.name.lstrip('/')}'"
    if dataset.shape not in ((num_patches, 1), (num_patches,)):
        raise DataError(f"{where} must have the shape ({num_patches}, 1), not {dataset.shape}")
    if dataset.dtype.kind not in "OSU":
        raise DataError(f"{where} must hold strings, not {dataset.dtype}")
    barcodes = [
        value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in dataset[()].ravel()
    ]
    unique_positions(
        where, "barcode", barcodes, "name each patch once, or remove the one that was added twice"
    )
    return barcodes
