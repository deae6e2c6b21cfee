"""Name → a backbone in evaluation mode and the transform of its images, for pipelines that are handed the two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from ..models import create_model

Transform = Callable[[Any], Tensor]
"""PIL image → (3, height, width), normalised."""

_PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


def load_encoder(
    model_name: str,
    *,
    pretrained: bool | None = None,
    checkpoint_path: str | Path | None = None,
    image_size: int | None = None,
    **model_args: Any,
) -> tuple[nn.Module, Transform]:
    """Builds a backbone that gives one vector an image, and its transform.

    Args:
        model_name: A name of ``timm_mvhybrid.create_model``: a model of this package or any other, ``hf-hub:...``,
            ``local-dir:...``.
        pretrained: Take published weights; None means yes, unless a checkpoint is given.
        checkpoint_path: Take the weights of this file.
        image_size: Side in px at which images enter; other images are resized. None takes the model's own, 256 px for
            the backbones of this package.
        **model_args: Further arguments of ``timm_mvhybrid.create_model``.

    Returns:
        The model, which maps (batch, 3, height, width) to (batch, features), and its transform.

    Raises:
        ValueError: The size does not suit the model's patches, or the model leaves its tokens unpooled.
    """
    if model_args.get("global_pool") == "":
        raise ValueError(
            "global_pool is '', so the model would return tokens; leave it out for the class token, or give 'avg'"
        )
    pretrained = checkpoint_path is None if pretrained is None else pretrained
    if checkpoint_path is not None:
        model_args["checkpoint_path"] = str(checkpoint_path)
    model = create_model(model_name, pretrained=pretrained, num_classes=0, **model_args).eval()
    config = resolve_data_config({}, model=model)
    if image_size is not None:
        sides = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        if image_size < 1 or any(image_size % side for side in sides):
            raise ValueError(
                f"image_size is {image_size} px; {model_name} takes multiples of {sides[0]} px, such as "
                f"{max(1, round(image_size / sides[0])) * sides[0]}"
            )
        config["input_size"] = (config["input_size"][0], image_size, image_size)
    return model, create_transform(**{**config, "crop_pct": 1.0})


def check_precision(precision: torch.dtype) -> torch.dtype:
    """Returns a dtype that a pipeline may use for autocast; the features are float32 under each.

    Args:
        precision: The dtype.

    Raises:
        ValueError: It is none of float32, float16 and bfloat16.
    """
    if precision not in _PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; give torch.float32, torch.float16 or torch.bfloat16, without quotes"
        )
    return precision
