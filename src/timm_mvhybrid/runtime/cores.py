"""Processes that read patches: as many as are asked for, and no more than there are cores."""

from __future__ import annotations

import os


def num_usable_cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_loader_workers(wanted: int, num_batches: int) -> int:
    """Limits the processes of a loader.

    Reading, decoding and cropping keep a core busy, so that more processes would wait for one, and torch warns of them
    in every process that makes a loader. What a loader yields does not depend on their number.

    Args:
        wanted: Processes asked for; 0 reads in this one.
        num_batches: Batches there will be, because a process without a batch would be started for nothing.
    """
    return min(wanted, num_batches, num_usable_cores())
