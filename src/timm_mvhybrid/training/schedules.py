"""Step → learning rate, weight decay, momentum or temperature: pure functions, so that a resumed run needs no state."""

from __future__ import annotations

import math

from ..runtime.errors import PretrainError


def linear_warmup(step: int, *, start: float, end: float, num_steps: int) -> float:
    """Rises (or falls) along a line and then stays.

    The first step has ``start``, step ``num_steps - 1`` and all later ones have ``end``, as DINOv2's warm-ups.

    Args:
        step: Step, from 0.
        start: Value at step 0, if there is a warm-up at all.
        end: Value after the warm-up.
        num_steps: Steps of the warm-up; 0 or 1 has ``end`` or ``start`` at step 0.

    Raises:
        PretrainError: ``step`` or ``num_steps`` is negative.
    """
    _check_counts(step=step, num_steps=num_steps)
    if step >= num_steps:
        return end
    return start + (end - start) * step / max(num_steps - 1, 1)


def cosine_schedule(
    step: int,
    *,
    start: float,
    end: float,
    num_steps: int,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
    frozen_steps: int = 0,
) -> float:
    """Warms up along a line, then goes from ``start`` to ``end`` along half a cosine.

    With s steps after the warm-up and S = ``num_steps - warmup_steps``: end + (start − end) (1 + cos(π s / S)) / 2. The
    last step of a run, ``num_steps - 1``, is thus just short of ``end``; ``end`` itself stands from ``num_steps`` on.

    Source: DINOv2 (arXiv 2304.07193), whose published code has these end points. Frozen steps do not shift the rest,
    as in its learning rate of the last layer.

    Args:
        step: Step, from 0.
        start: Value at the end of the warm-up.
        end: Value at ``num_steps``.
        num_steps: Steps of the run, the warm-up's included.
        warmup_steps: Steps of the warm-up; the last of them has ``start``.
        warmup_start: Value at step 0 of the warm-up.
        frozen_steps: Leading steps at which the value is 0 whatever the schedule says.

    Raises:
        PretrainError: A count is negative, or the warm-up is longer than the run.
    """
    _check_counts(step=step, num_steps=num_steps, warmup_steps=warmup_steps, frozen_steps=frozen_steps)
    if warmup_steps > num_steps:
        raise PretrainError(
            f"warmup_steps is {warmup_steps}; it must be at most num_steps, which is {num_steps}"
        )
    if step < frozen_steps:
        return 0.0
    if step < warmup_steps:
        return linear_warmup(step, start=warmup_start, end=start, num_steps=warmup_steps)
    if step >= num_steps:
        return end
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 0:
            raise PretrainError(f"{name} is {value}; it must be at least 0")
