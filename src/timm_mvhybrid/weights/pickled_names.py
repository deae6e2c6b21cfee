"""A PyTorch file → the names of the objects in it that are not tensors, read without running anything."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

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
