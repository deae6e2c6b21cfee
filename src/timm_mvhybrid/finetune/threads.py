"""Compiled work on rows: where it can be had, and shared out to as many threads as PyTorch has."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def compiled_kernels(name: str, like: Tensor) -> Any:
    """Finds a module of this room whose functions Numba compiles, which work on float32 on a CPU.

    Args:
        name: Of the module.
        like: What it shall work on.

    Returns:
        The module; None for all else, for nothing, and where Numba is missing or may keep nothing that it compiles.
    """
    can = like.device.type == "cpu" and like.dtype == torch.float32 and like.numel() > 0
    return _module(name) if can else None


@functools.cache
def _module(name: str) -> Any:
    try:
        return importlib.import_module(f".{name}", __package__)
    except (ImportError, RuntimeError):
        return None


def in_threads(work: Callable[[slice, int], None], num_rows: int, *, least: int = 1, step: int = 1) -> int:
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
    if number == 1:
        work(parts[0], 0)
        return 1
    with ThreadPoolExecutor(number) as pool:
        for future in [pool.submit(work, part, n) for n, part in enumerate(parts)]:
            future.result()
    return number


def num_parts(num_rows: int, least: int = 1) -> int:
    """Says how many parts :func:`in_threads` makes of rows."""
    return max(1, min(torch.get_num_threads(), num_rows // least))
