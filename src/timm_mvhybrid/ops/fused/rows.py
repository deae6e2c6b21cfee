"""Kernels that numba compiles as functions of arrays, shared out by rows to as many threads as torch has."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .native import note_cache_failure, pool


def compiled_kernels(module: str, like: Tensor) -> Any:
    """Finds a module of kernels, which work on float32 on a CPU.

    Args:
        module: Its full name.
        like: What it shall work on.

    Returns:
        The module; None for all else, for nothing, and where numba cannot be imported.
    """
    can = like.device.type == "cpu" and like.dtype == torch.float32 and like.numel() > 0
    return _module(module) if can else None


@functools.cache
def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def jit(function: Callable[..., None]) -> Callable[..., None]:
    """Compiles a kernel at its first call, without the interpreter's lock, and keeps it on disk where that can be done.

    Sums may be taken in any order, and of a product and a sum one operation may be made.
    """
    numba: Any = importlib.import_module("numba")
    compile_ = functools.partial(
        numba.njit, nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy"
    )
    kernels: list[Callable[..., None]] = []
    try:
        kernels.append(compile_(cache=True)(function))
    except RuntimeError as error:  # no folder that it may write to
        note_cache_failure(error)
        kernels.append(compile_()(function))

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        try:
            kernels[0](*arguments)
        except OSError as error:  # a full disk; nothing was computed yet
            note_cache_failure(error)
            kernels[0] = compile_()(function)
            kernels[0](*arguments)

    return call


def in_parts(work: Callable[[slice, int], None], num_rows: int, *, least: int = 1, step: int = 1) -> int:
    """Calls a function that gives up the interpreter's lock, for one part of the rows a thread.

    Args:
        work: Takes a part and its number.
        num_rows: Rows.
        least: Rows that are worth a thread.
        step: Rows that stay together, from the first one on.

    Returns:
        Number of the parts.
    """
    number = num_parts(num_rows, least)
    ends = [step * (num_rows * n // number // step) for n in range(number)]
    parts = [slice(start, stop) for start, stop in zip(ends, [*ends[1:], num_rows], strict=True)]
    others = [pool(number - 1).submit(work, part, n) for n, part in enumerate(parts) if n]
    work(parts[0], 0)
    for other in others:
        other.result()
    return number


def num_parts(num_rows: int, least: int = 1) -> int:
    """Says how many parts :func:`in_parts` makes of rows."""
    return max(1, min(torch.get_num_threads(), num_rows // least))
