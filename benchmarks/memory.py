"""A call → the most memory that it holds at a time, beyond what was there before."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_extra_bytes(call: Callable[[], object], device: torch.device | None = None) -> int:
    """Measures the peak of the tensor memory that a call allocates.

    On a GPU the caching allocator counts. On a CPU the profiler reports each allocation and release of torch's CPU
    allocator, and the peak of their running sum is taken: it sees temporaries inside operators and in the backward
    pass, is exact to the byte and does not depend on what ran before, as the resident size of the process would.
    It does not see what libraries such as oneDNN allocate for themselves.

    Args:
        call: The work; its result counts too.
        device: Where it runs; the CPU by default.

    Returns:
        Bytes. What the call releases of older memory is not deducted on a CPU.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints its own life to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    ]
    if not changes:
        raise RuntimeError("the profiler reported no allocation; this torch cannot measure CPU memory")
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak
