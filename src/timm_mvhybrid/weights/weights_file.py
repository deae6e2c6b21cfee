"""A weights file → its tensors, after every check that needs only the file, or an error that names it and what is pickled in it."""

from __future__ import annotations

import importlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..runtime.digest import file_sha256
from ..runtime.tensor_digest import tensors_sha256
from .errors import CheckpointError
from .key_conversion import GATHER
from .position_grid import PATCH_GRID, Grid, grid_from_text

# what tensors and their containers consist of
_TENSORS = re.compile(
    r"torch\.(?:\w+Storage|Size|Tensor|device|_utils\.\w+|_tensor\._rebuild\w+|storage\.\w+|nn\.parameter\.Parameter|"
    r"serialization\._get_layout)|collections\.OrderedDict|_codecs\.encode"
)
# pickles that precede the weights in torch's format of before 2020, and the weights' own
_MAX_PICKLES = 4


def unsafe_names(path: Path) -> list[str]:
    """Lists the functions and classes that a file refers to and that torch.load refuses with ``weights_only``, sorted.

    The pickle, or that of a file of torch.save, is taken apart, operation by operation; nothing is imported or called.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    # torch reads what torch.save writes by default; other files raise errors of many kinds
    except Exception:
        return sorted(
            name
            for name in _names(path)
            if not _TENSORS.fullmatch(name)
            and not isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)
        )


def _names(path: Path) -> set[str]:
    names: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.namelist():
                    if entry.endswith("/data.pkl"):
                        with archive.open(entry) as file:
                            names.update(_pickle_names(file))
            return names
        with path.open("rb") as file:
            for _ in range(_MAX_PICKLES + 1):
                names.update(_pickle_names(file))
    # damaged bytes, or the storages that follow the pickles
    except Exception:
        pass
    return names


def _pickle_names(file: IO[bytes]) -> Iterator[str]:
    """Yields what one pickle refers to, by either of the two operations that do so."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)
        elif operation.name == "STACK_GLOBAL" and len(strings) > 1:
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else ""
        elif operation.name in ("BINGET", "LONG_BINGET") and argument in memo:
            strings.append(memo[argument])


# keys of the metadata of a safetensors file; all values are strings
TENSORS_SHA256 = "tensors_sha256"
FINGERPRINT = "fingerprint"

COPY_AGAIN = "copy, download or export it again"
_MAX_NAMES = 6
# as Hugging Face's libraries name the parts of a model
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.\w+$")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a file holds.

    Attributes:
        path: The file.
        sha256: Its sha256 in hex.
        checkpoint: A state dict, or a training checkpoint that holds one.
        metadata: Metadata of a safetensors file; empty for other formats.
        remedy: What to do about a damaged file, half a sentence.
    """

    path: Path
    sha256: str
    checkpoint: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    remedy: str = COPY_AGAIN

    @property
    def grid(self) -> Grid | None:
        """Rows and columns of patches that the file states for its position embedding; None where it states none."""
        text = self.metadata.get(PATCH_GRID)
        if text is None:
            return None
        try:
            return grid_from_text(text)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: its metadata state {error}: the file is damaged; {self.remedy}"
            ) from error


def read_weights(
    path: str | Path, *, sha256: str | None = None, stated_in: str = "", remedy: str = COPY_AGAIN
) -> WeightsFile:
    """Reads a weights file without running anything in it.

    The file's bytes are compared with the sha256 before a tensor is used; without one, the tensors of a file that this
    package exported are compared with the digest in its metadata.

    Args:
        path: A safetensors file, or a PyTorch file that holds tensors only.
        sha256: What the file's sha256 must be; None where it is not known.
        stated_in: Where that is stated, for messages.
        remedy: What to do about a damaged file, half a sentence.

    Raises:
        CheckpointError: The file is missing, empty, damaged, changed or unsafe; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path}: is a folder; give the file of the weights in it, or turn a run or a sharded checkpoint into one with "
            "'timm-mvhybrid export'"
        )
    if path.suffix == ".distcp":
        raise CheckpointError(
            f"{path}: is one shard of a checkpoint of torch.distributed.checkpoint; give its folder to 'timm-mvhybrid export'"
        )
    if (shard := _SHARD.search(path.name)) and int(shard[2]) > 1:
        raise CheckpointError(
            f"{path}: is shard {int(shard[1])} of {int(shard[2])} of the weights; save them in one file "
            "(max_shard_size='100GB')"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; check the path, or {remedy}")
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty; {remedy}")
        with path.open("rb") as file:
            head = file.read(64)
        digest = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if known := _what_it_is(head, path):
        raise CheckpointError(f"{path}: {known}; {remedy}")
    if sha256 is not None and digest != sha256:
        raise CheckpointError(
            f"{path}: its sha256 is {digest}, but {stated_in or 'its record'} states {sha256}: the file is damaged, or "
            f"belongs to another configuration; {remedy}"
        )
    # a surrounding device context, such as meta, must not affect the tensors that are read
    with torch.device("cpu"):
        checkpoint, metadata = (
            _read_safetensors(path, remedy)
            if path.suffix == ".safetensors"
            else (_read_torch(path, remedy), {})
        )
    if (
        sha256 is None
        and TENSORS_SHA256 in metadata
        and tensors_sha256(checkpoint) != metadata[TENSORS_SHA256]
    ):
        raise CheckpointError(
            f"{path}: its tensors are not those that were exported (their sha256 differs from the one in the file's "
            f"metadata): the file is damaged; {remedy}"
        )
    return WeightsFile(path=path, sha256=digest, checkpoint=checkpoint, metadata=metadata, remedy=remedy)


def check_finite(tensors: Mapping[str, Tensor], path: str | Path, remedy: str = COPY_AGAIN) -> None:
    """Refuses NaN and Inf, in this process's part of a sharded tensor, and in no placeholder.

    Raises:
        CheckpointError: A tensor is not finite; the message names tensor and file, and ends with the remedy.
    """
    faults = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{path}: {faults[0]}{more} hold NaN or Inf; the file is damaged or its training diverged: {remedy}, or take "
            "an earlier checkpoint"
        )


def _is_finite(tensor: Any) -> bool:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    if local.is_meta:
        return True
    # float8 has no arithmetic
    numbers = local.float() if local.is_floating_point() and local.element_size() == 1 else local
    return bool(torch.isfinite(numbers).all())


def _what_it_is(head: bytes, path: Path) -> str | None:
    """Recognises by its first bytes what is often saved instead of weights."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page (an error or login page that was saved), not weights"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights themselves (git lfs pull)"
    # a safetensors file starts with the length of its header, whose lowest byte may be that of a pickle
    is_safetensors = head[4:9] == b"\0\0\0\0{"
    if path.suffix == ".safetensors" and not is_safetensors and head.startswith((b"\x80", b"PK\x03\x04")):
        return "is a PyTorch or pickle file under the name of a safetensors file; nothing of it was run"
    return None


def _read_safetensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file, perhaps cut short or damaged ({error}); {remedy}"
        ) from error
    # safetensors.torch.save_model writes a tensor that has several names once, and the other names in the metadata
    aliases = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors}
    return {**aliases, **tensors}, metadata


def _read_torch(path: Path, remedy: str) -> Mapping[str, Any]:
    try:
        checkpoint = _load_tensors(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refusal(path, error, remedy)}") from error
    # on damaged bytes the unpickler raises exceptions of many kinds
    except Exception as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: is a TorchScript archive, which holds code; nothing of it was run. Save the state dict of the model "
                "that it was made from"
            ) from error
        raise CheckpointError(
            f"{path}: not a readable PyTorch file, perhaps cut short or damaged ({error}); {remedy}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(checkpoint).__name__}, not a state dict; give the file that holds the weights"
        )
    return checkpoint


def _load_tensors(path: Path) -> Any:
    with warnings.catch_warnings():
        # newer protocols that it cannot read are an error anyway, and every sparse entry is to be checked
        warnings.filterwarnings("ignore", message="Detected pickle protocol|Validating sparse tensor")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            if not any(name.startswith("torch.distributed.") for name in unsafe_names(path)):
                raise
            # torch accepts its distributed tensors once their module was imported
            importlib.import_module("torch.distributed.tensor")
            return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, error: pickle.UnpicklingError, remedy: str) -> str:
    """Names the objects in a file that are not tensors or, if there are none, what the unpickler reported."""
    names = unsafe_names(path)
    if not names:
        # torch surrounds the reason with advice in bold face
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        stated = [line for line in lines if "WeightsUnpickler error" in line]
        reason = (stated or lines or ["not a pickle"])[0].removeprefix("WeightsUnpickler error:").strip()
        return f"holds more than tensors, or is damaged ({reason}). Nothing of it was run; {remedy}"
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    found = f"holds more than tensors: {', '.join(names[:_MAX_NAMES])}{more}. Nothing of it was run"
    if any(name.startswith("torch.distributed.") for name in names):
        return f"{found}; {GATHER}"
    return (
        f"{found}; where you trust it, open it with torch.load(..., weights_only=False) and save its state dict alone, with "
        "safetensors.torch.save_file"
    )
