"""Parameters that stay in float32 when their model is cast to a half-width dtype."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


def float32_unless_wider(dtype: torch.dtype | None) -> torch.dtype | None:
    """Replaces a half-width dtype by float32, for parameters of :class:`KeepsFloat32`."""
    return torch.float32 if dtype in _HALF else dtype


class KeepsFloat32(nn.Module):
    """A module some of whose own parameters are never cast below float32.

    The scan multiplies exp(δ A) over hundreds of steps: half-width decay rates would shift every eigenvalue by up to
    half a per cent, and casting back to float32 could not undo it.
    """

    float32_parameters: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # one that this module goes without is None, and no parameter
        own = [self._parameters.get(name) for name in self.float32_parameters]
        kept = {id(x) for p in own if p is not None for x in (p, p.grad) if x is not None}

        def apply(x: Tensor) -> Tensor:
            moved = fn(x)
            return x.to(moved.device) if id(x) in kept and moved.dtype in _HALF else moved

        return super()._apply(apply, recurse)
