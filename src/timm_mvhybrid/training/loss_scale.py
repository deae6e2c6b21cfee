"""Loss scaling for float16: gradients too small for its range are lifted before they are computed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class LossScale:
    """A dynamic factor of the loss: halved after an overflow, doubled after many steps without.

    ``torch.amp.GradScaler`` looks for overflows in the gradients of one process; here the norm that clipping computes
    over all shards tells, so that every process decides alike.

    Args:
        enabled: Whether to scale; False keeps the factor at 1.
        initial: First factor.
        growth_steps: Steps without overflow before it is doubled.
    """

    def __init__(self, *, enabled: bool, initial: float = 2.0**16, growth_steps: int = 2000) -> None:
        self.enabled = enabled
        self.factor = initial if enabled else 1.0
        self.growth_steps = growth_steps
        self._num_good = 0

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divides gradients by the factor, in place."""
        if self.enabled:
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / self.factor)

    def update(self, *, overflow: bool) -> bool:
        """Adapts the factor."""
        if not self.enabled:
            return False
        if overflow:
            self.factor /= 2.0
            self._num_good = 0
            return True
        self._num_good += 1
        if self._num_good == self.growth_steps:
            self.factor *= 2.0
            self._num_good = 0
        return False

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"factor": self.factor, "num_good": self._num_good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes up a kept state."""
        if self.enabled:
            self.factor = float(state["factor"])
            self._num_good = int(state["num_good"])
