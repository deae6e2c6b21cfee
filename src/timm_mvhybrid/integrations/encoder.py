"""What integrations have in common: a pipeline's module, a backbone with the transform of its images, a precision."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ..embed.backbone import Transform, load_encoder
from ..runtime.errors import MissingPackageError, ParameterError, TimmMVHybridError

__all__ = ["MissingWeightsError", "Transform", "check_precision", "load_encoder", "pipeline_module"]

_PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


class MissingWeightsError(TimmMVHybridError, FileNotFoundError):
    """There is no file of weights at the path that was given."""


def pipeline_module(name: str, attribute: str, remedy: str) -> Any:
    """Imports a module of a pipeline, and makes sure that it has an attribute, which other versions may lack.

    Raises:
        MissingPackageError: The pipeline, or the attribute, is missing; the message ends with the remedy.
    """
    try:
        module = import_module(name)
        getattr(module, attribute)
    except (ImportError, AttributeError) as error:
        raise MissingPackageError(f"{name} cannot be imported ({error}); {remedy}") from error
    return module


def check_precision(precision: torch.dtype) -> torch.dtype:
    """Returns a dtype that a pipeline may use for autocast; the features are float32 under each.

    Raises:
        ParameterError: It is none of float32, float16 and bfloat16.
    """
    if precision not in _PRECISIONS:
        raise ParameterError(
            f"`precision` is {precision!r}; give torch.float32, torch.float16 or torch.bfloat16, without quotes"
        )
    return precision
