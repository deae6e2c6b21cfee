"""Processes that read patches: as many as are wanted, and no more than cores."""

from __future__ import annotations

import os


def num_usable_cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_loader_workers(wanted: int, num_batches: int) -> int:
    """Limits the processes of a loader.

    Reading, decoding and cropping keep a core busy, so that further processes would wait for one; torch warns of them,
    in every process that makes a loader. What a loader yields does not depend on their number.

    Args:
        wanted: Processes asked for; 0 reads in this one.
        num_batches: Batches there will be, for a process without one would be started in vain.

    Returns:
        The processes to start.
    """
    return min(wanted, num_batches, num_usable_cores())
