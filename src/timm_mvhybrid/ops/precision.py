"""The dtype that recurrences and spectra are computed in: any floating dtype → float32 or float64."""

import contextlib
from contextlib import AbstractContextManager

import torch
from timm.layers import register_notrace_function
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64 and float32 for every narrower floating dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@register_notrace_function
def at_least_float32(x: Tensor) -> Tensor:
    """Widens float16 and bfloat16 to float32 and leaves the rest alone; a leaf for FX, and scriptable."""
    if x.dtype == torch.float64:
        return x
    return x.float()


def autocast_disabled(device_type: str) -> AbstractContextManager[object]:
    """Returns a context in which autocast leaves float32 alone; the meta device has no autocast and needs none.

    Where autocast is off there is nothing to switch off, and an exported program would contain a subgraph for it.
    """
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
