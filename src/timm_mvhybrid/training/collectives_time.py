"""One step under the profiler → the fraction of its time in which processes exchange tensors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile


class CollectivesTime:
    """What a profiled step spent on collectives.

    FSDP exchanges shards while it computes, so that neither the loop's clock nor marks between its phases can tell; the
    profiler sees every collective with its start and end.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        """Fraction of the wall-clock time, 0 to 1, during which a collective was running, beside computing or not; None before."""


@contextmanager
def watch_collectives(device: torch.device) -> Iterator[CollectivesTime]:
    """Profiles what runs within.

    Args:
        device: Where it runs: NCCL's kernels are counted on CUDA, gloo's operations on a CPU.
    """
    # the profiler's library reports on devices that are not there, on stderr
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    on_cuda = device.type == "cuda"
    found = CollectivesTime()
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiler:
        yield found
        if on_cuda:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    wanted = torch.autograd.DeviceType.CUDA if on_cuda else torch.autograd.DeviceType.CPU
    prefix = "nccl" if on_cuda else "gloo:"
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == wanted and event.name.lower().startswith(prefix)
    ]
    found.share = min(covered(spans) / 1e6 / max(seconds, 1e-9), 1.0)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Measures the union of spans of time, each instant once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
