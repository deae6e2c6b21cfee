"""Any checkpoint of a training, or weights → the state dict of one backbone, and the run it came from.

Of the folder of a sharded checkpoint (torch.distributed.checkpoint) the tensors asked for are read in one process. Its index, ``.metadata``, is a pickle. It is read by an unpickler that admits the plain classes of which such an index
consists and nothing else; of the shards only tensors are read, with ``weights_only``.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from ..models.loading import CONFIG_FILE, stated_input_size
from ..models.pretrained import find_weights
from ..runtime.digest import file_sha256
from ..weights.checkpoint import checkpoint_filter_fn
from ..weights.key_conversion import (
    BackboneNames,
    Branch,
    KeyConversionError,
    find_backbone,
    take_backbone,
    whole_tensor,
)
from ..weights.position_grid import PATCH_GRID, Grid
from ..weights.weights_file import check_finite, read_weights
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
    """Reads the wanted tensors of a sharded checkpoint, whole, whatever the number of processes that wrote it.

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
            index = _IndexUnpickler(file).load()
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


class _Reader(dcp.FileSystemReader):
    """Reads shards by an index that was read safely."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if getattr(self._index, "storage_meta", None) is None:
            self._index.storage_meta = StorageMeta()
        return self._index


ENCODER_FILE = "encoder.safetensors"
"""What a finished run of fine-tuning leaves; adapters are merged in it."""


@dataclass(frozen=True, kw_only=True)
class TrainingCheckpoint:
    """The weights of one backbone, by the names of their source without the prefixes of wrappers.

    Args:
        path: The file, or the folder of a sharded checkpoint.
        tensors: The weights, on the CPU.
        branch: Whose weights they are; None where the source has no branches.
        run: The run's folder, where its records lie; None if the checkpoint lies in none.
        step: The step of training, as the checkpoint's name states it.
        sha256: sha256 of the file, or of a sharded checkpoint's index.
        prefix: What stands in front of all their names.
        grid: Rows and columns of patches that it states for its position embedding; None where it states none.
        input_size: Channels, height and width in px that the configuration beside it states; None where there is none.
    """

    path: Path
    tensors: dict[str, Tensor]
    branch: Branch | None
    run: Path | None
    step: int | None
    sha256: str
    prefix: str = ""
    grid: Grid | None = None
    input_size: tuple[int, ...] | None = None


def read_training_checkpoint(path: str | Path, branch: Branch = "teacher") -> TrainingCheckpoint:
    """Reads a checkpoint.

    Args:
        path: A run's folder (its newest ``checkpoints/step_<n>`` is taken; of fine-tuning its encoder), a sharded checkpoint's folder, an exported
            folder, or a file (safetensors, or PyTorch tensors only).
        branch: Whose weights to take where there are a teacher's and a student's.

    Raises:
        ExportError: There is no checkpoint, or it lacks the branch.
        CheckpointError: It is damaged, unsafe or not finite.
    """
    path = _find(Path(path))
    try:
        if path.is_dir():
            found, tensors, grid = _read_folder(path, branch)
            sha256, input_size = file_sha256(path / INDEX_FILE), None
        else:
            weights = read_weights(path)
            grid, sha256 = weights.grid, weights.sha256
            input_size = stated_input_size(path.parent / CONFIG_FILE, path.name)
            found, tensors = take_backbone(weights.checkpoint, branch=branch)
    except KeyConversionError as error:
        raise ExportError(f"{path}: {error}") from error
    if found.branch not in (branch, None):
        raise ExportError(
            f"{path}: has no {branch}, only a {found.branch}; take it with `branch='{found.branch}'`"
        )
    check_finite({found.names[name]: tensor for name, tensor in tensors.items()}, path)
    step = re.search(r"step_?(\d+)", path.name)
    return TrainingCheckpoint(
        path=path,
        tensors=tensors,
        branch=found.branch,
        run=_run_folder(path),
        step=int(step[1]) if step else None,
        sha256=sha256,
        prefix=found.prefix,
        grid=grid,
        input_size=input_size,
    )


def convert(checkpoint: TrainingCheckpoint, model: Any) -> dict[str, Tensor]:
    """Converts a checkpoint into a model's names and shapes; it must cover the model exactly.

    Raises:
        ExportError: Weights are missing, of another shape, or the model has no place for them.
    """
    try:
        return checkpoint_filter_fn(
            checkpoint.tensors, model, grid=checkpoint.grid, input_size=checkpoint.input_size
        )
    except RuntimeError as error:
        under = f"under '{checkpoint.prefix}', " if checkpoint.prefix else ""
        raise ExportError(f"{checkpoint.path}: {under}{error}") from error


def _read_folder(path: Path, branch: Branch) -> tuple[BackboneNames, dict[str, Tensor], Grid | None]:
    """Reads one backbone of a sharded checkpoint, and the grid that it states."""
    names = tensor_names(path)
    found = find_backbone(names, branch=branch)
    wanted = {PATCH_GRID, *found.names.values()}
    read = read_sharded(path, wanted.__contains__)
    rows_columns = read.pop(PATCH_GRID, None)
    grid = None if rows_columns is None else (int(rows_columns[0]), int(rows_columns[1]))
    return found, {name: whole_tensor(source, read[source]) for name, source in found.names.items()}, grid


def _find(path: Path) -> Path:
    """Turns what the user named into a file or a sharded checkpoint's folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ExportError(f"{path}: no such checkpoint, neither a file nor a folder; check the path")
    if is_sharded(path):
        return path
    if (path / ENCODER_FILE).is_file():
        return path / ENCODER_FILE
    if is_finetuning(path):
        raise ExportError(
            f"{path}: the run is not finished, so it has no {ENCODER_FILE}; start it again, and it goes on"
        )
    steps = {
        int(match[1]): child
        for child in (path / "checkpoints").glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)(?:\.(?:pt|pth|safetensors))?", child.name))
    }
    finished = [step for step in sorted(steps) if steps[step].is_file() or is_sharded(steps[step])]
    if finished:
        return steps[finished[-1]]
    try:
        return find_weights(path)
    except RuntimeError as error:
        raise ExportError(
            f"{path}: neither a run (checkpoints/step_<n>), nor a sharded checkpoint ({INDEX_FILE}), nor a folder with "
            "weights; name the checkpoint itself"
        ) from error


def run_config(run: Path) -> dict[str, Any]:
    """Reads the configuration of a run; empty where there is none that can be read."""
    try:
        found = json.loads((run / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_finetuning(run: Path) -> bool:
    """Says whether a folder is that of a run that fine-tunes an encoder, rather than training one."""
    resolved = run_config(run).get("resolved")
    return isinstance(resolved, dict) and resolved.get("method") in ("mint", "stamp")


def _run_folder(path: Path) -> Path | None:
    """Finds the run that a checkpoint belongs to: RUN/checkpoints/<checkpoint>, or the records beside a file."""
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return path.parent if (path.parent / "metrics.jsonl").is_file() else None
