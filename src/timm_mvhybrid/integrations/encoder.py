"""What pipelines are handed: a backbone, the transform of its images, a precision that it may be computed in."""

from __future__ import annotations

import torch

from ..embed.backbone import Transform, load_encoder

__all__ = ["Transform", "check_precision", "load_encoder"]

_PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


def check_precision(precision: torch.dtype) -> torch.dtype:
    """Returns a dtype that a pipeline may use for autocast; the features are float32 under each.

    Raises:
        ValueError: It is none of float32, float16 and bfloat16.
    """
    if precision not in _PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; give torch.float32, torch.float16 or torch.bfloat16, without quotes"
        )
    return precision
