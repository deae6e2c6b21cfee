"""Contenders → times in interleaved rounds → medians, quartiles, ratios.

In every round each contender runs once, so that whatever disturbs the machine disturbs all of them; a ratio is the
median of the rounds' ratios. The order rotates, and every other round runs backwards, so that no contender always
follows the same one and finds the caches and the allocator as that one left them.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Timer = Callable[[Callable[[], object]], float]
"""Runs a call and returns its seconds."""

FLUSH_BYTES = 1 << 30
"""Written before every call on a GPU; many times any second-level cache."""

FLUSH_PASSES = 4
"""Times that it is written: a millisecond or more, which the host needs to enqueue a backward pass."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to time.

    Attributes:
        name: What the report calls it.
        call: Does the work once; what it returns is dropped.
    """

    name: str
    call: Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median between its quartiles.

    Attributes:
        median: Second quartile.
        low: First quartile.
        high: Third quartile.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure.

    Attributes:
        budget_s: No round starts later than this many seconds after the first, once ``min_rounds`` are done.
        min_rounds: Rounds whatever they cost.
        max_rounds: Rounds at most.
        warmups: Unmeasured rounds before.
    """

    budget_s: float = 30.0
    min_rounds: int = 5
    max_rounds: int = 101
    warmups: int = 1


@dataclass(frozen=True)
class Times:
    """Measured times.

    Attributes:
        seconds: By contender, one number a round.
    """

    seconds: dict[str, list[float]]

    def spread(self, name: str) -> Spread:
        """Returns the spread of a contender's seconds."""
        return spread(self.seconds[name])

    def ratio(self, numerator: str, denominator: str) -> Spread:
        """Returns the spread of the rounds' ratios between two contenders."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        return spread([a / b for a, b in pairs])


def spread(values: Sequence[float]) -> Spread:
    """Computes median and quartiles, of one value or more."""
    if len(values) == 1:
        return Spread(median=values[0], low=values[0], high=values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high)


def measure(
    contenders: Sequence[Contender],
    effort: Effort,
    timer: Timer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Times:
    """Times the contenders beside each other.

    Args:
        contenders: What to time, under different names.
        effort: How long.
        timer: Runs a call and returns its seconds; wall-clock time by default.
        clock: Seconds, for the budget.

    Returns:
        The seconds of every contender in every round.
    """
    timer = timer or wall_clock
    for _ in range(effort.warmups):
        for contender in contenders:
            contender.call()
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    if len(times) < len(contenders):
        raise ValueError(f"two contenders share a name: {[c.name for c in contenders]}")
    start = clock()
    with _no_collection():
        for number in range(effort.max_rounds):
            if number >= effort.min_rounds and clock() - start > effort.budget_s:
                break
            gc.collect()
            for contender in _order(contenders, number):
                times[contender.name].append(timer(contender.call))
    return Times(times)


def wall_clock(call: Callable[[], object]) -> float:
    """Times a call on the CPU, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cuda_timer(device: torch.device) -> Timer:
    """Makes a timer of the work that a call leaves to a GPU.

    Before the first event the cache is overwritten. That makes every call find it cold, and gives the host time to
    enqueue the call's kernels, so that launches of a short call are not counted where a model would hide them.

    Args:
        device: The GPU.

    Returns:
        The timer.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def timer(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        for _ in range(FLUSH_PASSES):
            flush.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3

    return timer


def timer_for(device: torch.device) -> Timer:
    """Returns the timer that fits a device."""
    return cuda_timer(device) if device.type == "cuda" else wall_clock


def _order(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Orders the contenders of a round."""
    shift = number // 2 % len(contenders)
    order = [*contenders[shift:], *contenders[:shift]]
    return order[::-1] if number % 2 else order


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python's garbage collector out of the timed calls, and short between them."""
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
