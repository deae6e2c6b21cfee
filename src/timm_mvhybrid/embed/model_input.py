"""Model and options → the size at which patches enter it, and the device it runs on."""

from __future__ import annotations

from typing import Any, Literal

import torch
from timm.data.config import resolve_data_config
from torch import nn

from ..runtime.device import DeviceError, find_device
from ..runtime.errors import EvaluationError


def choose_input_size(
    model: nn.Module, patch_size_px: int | None, input_size: int | Literal["auto"]
) -> tuple[int, int]:
    """Decides at which size patches enter a model.

    Args:
        model: Any timm model.
        patch_size_px: Side of the patches in pixels; None where they differ (images of a folder).
        input_size: Wanted side in pixels, or ``auto``: the patches' own where the model takes it, otherwise the size
            the model was made for.

    Raises:
        EvaluationError: If the model does not take the wanted size.
    """
    configured = resolve_data_config({}, model=model)["input_size"]
    default = (int(configured[1]), int(configured[2]))
    if input_size == "auto":
        wanted = patch_size_px
        return (wanted, wanted) if wanted is not None and _takes_size(model, wanted, default) else default
    if not _takes_size(model, input_size, default):
        raise EvaluationError(
            f"the model does not take inputs of {input_size} px; it was made for {default[0]} px (`input_size='auto'`)"
        )
    return (input_size, input_size)


def _takes_size(model: nn.Module, size: int, default: tuple[int, int]) -> bool:
    if (size, size) == default:
        return True
    if size < 1:
        return False
    embed_layer: Any = getattr(model, "patch_embed", None)
    if hasattr(embed_layer, "strict_img_size"):
        flexible = getattr(model, "dynamic_img_size", False) or not embed_layer.strict_img_size
        multiple = all(size % side == 0 for side in embed_layer.patch_size)
        return bool(flexible and (multiple or getattr(embed_layer, "dynamic_img_pad", False)))
    return not (getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size", False)


def choose_device(name: str) -> torch.device:
    """Turns a device's name into a device that exists.

    Args:
        name: As in ``find_device``; ``auto`` is the first CUDA device, otherwise the CPU.

    Returns:
        The device.

    Raises:
        EvaluationError: If the name is unknown or the device cannot compute here.
    """
    try:
        return find_device(name)
    except DeviceError as error:
        raise EvaluationError(str(error)) from error
