"""A timm model's features of an image → one vector."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

from ..runtime.errors import EvaluationError, ParameterError

Pooling = Literal["model", "token", "avg", "max", "token+avg"]


def own_pooling(model: nn.Module) -> str:
    """Names the pooling that a timm model applies by itself.

    Returns:
        Such as ``token``, ``avg``, or ``unknown`` for models that do not say.
    """
    for holder in (model, getattr(model, "head", None)):
        pool: Any = getattr(holder, "global_pool", None)
        if isinstance(pool, str):
            return pool or "none"
        if isinstance(getattr(pool, "pool_type", None), str):
            return pool.pool_type or "none"
    return "unknown"


def check_pooling(model: nn.Module, pooling: str) -> None:
    """Refuses a pooling that the model does not support, before anything is computed.

    Raises:
        ParameterError: There is no such pooling.
        EvaluationError: It takes the class token of a model without one.
    """
    if pooling not in get_args(Pooling):
        raise ParameterError(f"`pool` is '{pooling}'; choose from {', '.join(get_args(Pooling))}")
    if "token" in pooling and (
        getattr(model, "cls_token", None) is None or not getattr(model, "num_prefix_tokens", 0)
    ):
        raise EvaluationError(
            f"`pool='{pooling}'` needs a class token, which this model does not have; use avg"
        )


def embedding_dim(model: Any, pooling: str) -> int:
    """Says how wide embeddings will be, before there are any.

    Returns:
        Length of the vector that `pooled_features` computes for an image.
    """
    width = int(model.num_features)
    if pooling == "model":
        return int(getattr(model, "head_hidden_size", width))
    return 2 * width if pooling == "token+avg" else width


def pooled_features(model: Any, images: torch.Tensor, pooling: str) -> torch.Tensor:
    """Computes one vector per image.

    Args:
        model: Any timm model.
        images: Normalised, (B, 3, H, W).
        pooling: ``model`` takes the model's own head; the others pool the output of ``forward_features``: the class
            token, the mean or the maximum over everything after the prefix tokens, or token and mean concatenated.

    Returns:
        (B, D) float32.

    Raises:
        EvaluationError: If the model's own head does not return vectors.
    """
    features = model.forward_features(images)
    if pooling == "model":
        vectors = model.forward_head(features, pre_logits=True)
        if vectors.ndim != 2:
            raise EvaluationError(
                f"the model's own pooling leaves features of shape {tuple(vectors.shape)}; choose `pool='avg'`"
            )
        return vectors.float()
    features = features.float()
    if features.ndim == 4:
        # convolutional networks have channels first, windowed transformers such as Swin last and say so
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        patches = features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
    else:
        patches = features[:, getattr(model, "num_prefix_tokens", 0) :]
    if pooling == "token":
        return features[:, 0]
    if pooling == "avg":
        return patches.mean(dim=1)
    if pooling == "max":
        return patches.amax(dim=1)
    return torch.cat([features[:, 0], patches.mean(dim=1)], dim=1)
