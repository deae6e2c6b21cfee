"""Folder of a sharded checkpoint (torch.distributed.checkpoint) → the tensors asked for, in one process.

Its index, ``.metadata``, is a pickle. It is read by an unpickler that admits the plain classes of which such an index
consists and nothing else; of the shards only tensors are read, with ``weights_only``.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from .errors import ExportError

INDEX_FILE = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_ADMITTED = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("torch", "device"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    *(
        (_METADATA, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    # a path, pickled by the class of its platform; old and new Pythons keep it in other modules
    *(
        (module, name)
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
}


def is_sharded(folder: Path) -> bool:
    """Says whether a folder is a checkpoint of torch.distributed.checkpoint."""
    return (folder / INDEX_FILE).is_file()


def read_sharded(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Reads tensors of a sharded checkpoint, whole, whatever the number of processes that wrote it.

    Args:
        folder: The checkpoint.
        wanted: Says by its name whether a tensor is read; the others are left on the disk.

    Raises:
        ExportError: Index or shards are missing, damaged or unsafe; the message names the folder.
    """
    index = _read_index(folder / INDEX_FILE)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in index.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and wanted(name)
    }
    if not tensors:
        return {}
    try:
        with warnings.catch_warnings():
            # it says that one process reads, which is meant
            warnings.filterwarnings("ignore", message=".*torch.distributed is .*single process")
            dcp.load(tensors, storage_reader=_Reader(folder, index))
    except (Exception, CheckpointException) as error:
        # of several processes' failures, of which there is one here
        failures = [failure for failure, _ in getattr(error, "failures", {}).values()]
        cause = failures[0] if failures else error
        reason = next(iter(str(cause).splitlines()), "") or type(cause).__name__
        raise ExportError(
            f"{folder}: its shards cannot be read ({reason}): files are missing, cut short or damaged; copy the checkpoint "
            "again, or take an earlier one"
        ) from error
    return tensors


def tensor_names(folder: Path) -> list[str]:
    """Lists the tensors of a sharded checkpoint.

    Raises:
        ExportError: The index is missing, damaged or unsafe.
    """
    entries = _read_index(folder / INDEX_FILE).state_dict_metadata.items()
    return [name for name, entry in entries if isinstance(entry, TensorStorageMetadata)]


class _IndexUnpickler(pickle.Unpickler):
    """Admits what an index consists of."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _ADMITTED and not is_dtype:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _read_index(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            index = _unpickle(file)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{path}: no index of a sharded checkpoint, or an unsafe one ({error}). Nothing of it was run; take a "
            "checkpoint from a source that you trust"
        ) from error
    # the unpickler meets damaged bytes with exceptions of many kinds
    except Exception as error:
        raise ExportError(
            f"{path}: not a readable index of a sharded checkpoint ({error}); copy the checkpoint again"
        ) from error
    if not isinstance(index, Metadata):
        raise ExportError(f"{path}: not the index of a sharded checkpoint; copy the checkpoint again")
    return index


def _unpickle(file: BinaryIO) -> Any:
    return _IndexUnpickler(file).load()


class _Reader(dcp.FileSystemReader):
    """Reads shards by an index that was read safely."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if getattr(self._index, "storage_meta", None) is None:
            self._index.storage_meta = StorageMeta()
        return self._index
