"""Marks within a step, one step under the profiler → images per second; fractions of time in data, compute, communication."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass
class CollectivesTime:
    """What a profiled step spent on collectives.

    FSDP exchanges shards while it computes, so that neither the loop's clock nor marks between its phases can tell; the
    profiler sees every collective with its start and end.
    """

    share: float | None = None
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


class Throughput:
    """Measures where the time between two log lines goes.

    On CUDA, kernels run after the call that queues them returned, so that phases other than ``data`` are measured by
    events on the current stream, and read when all of them have passed; nothing waits for the device in between.
    ``data`` is the wall-clock time that the loop waits for a batch, on any device; kernels may still run meanwhile, so
    that on CUDA fractions may add up to more than 1. FSDP's own communication overlaps
    with ``compute`` and counts there; ``communication`` is what the loop itself waits for.

    Args:
        device: Where the steps are computed.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Starts a new interval."""
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._num_images = 0

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the time within to a phase; phases do not nest."""
        if self._cuda and phase != "data":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            try:
                yield
            finally:
                last.record()
                self._events.append((phase, first, last))
            return
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def count(self, num_images: int) -> None:
        """Counts images of a step, over all ranks where the rate is to be that of the run."""
        self._num_images += num_images

    def summary(self) -> dict[str, float]:
        """Ends the interval and starts the next.

        Returns:
            ``images_per_second``, and the fraction of the interval's wall-clock time, 0 to 1, by phase as
            ``share_data``, ``share_compute`` and so on; ``share_other`` is the rest: logging, checkpoints, Python.
        """
        if self._events:
            self._events[-1][2].synchronize()
        for phase, first, last in self._events:
            self._seconds[phase] += first.elapsed_time(last) / 1e3
        total = max(time.perf_counter() - self._start, 1e-9)
        shares = {f"share_{phase}": seconds / total for phase, seconds in self._seconds.items()}
        result = {
            "images_per_second": self._num_images / total,
            **shares,
            "share_other": max(1 - sum(shares.values()), 0.0),
        }
        self.reset()
        return result
