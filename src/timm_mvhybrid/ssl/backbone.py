"""A timm VisionTransformer as pretraining needs it: with a mask token, for crops of two sizes, without a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..models import ALL_MODEL_NAMES, HybridVisionTransformer, create_model, load_weights
from ..runtime.errors import PretrainError


def create_backbone(
    name: str,
    arguments: dict[str, Any],
    *,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
) -> Any:
    """Creates a backbone whose state dict is the timm model's, and ``mask_token``.

    Args:
        name: Model of timm.
        arguments: Further arguments of ``timm.create_model``.
        drop_path_rate: Stochastic depth.
        pretrained: Whether to start from the weights that timm downloads.
        checkpoint: Start from the weights of this file; None for none.

    Raises:
        PretrainError: The model is unknown, no VisionTransformer, or has not what the losses need.
    """
    architecture = name.split(".")[0]
    if "/" not in name and not timm.is_model(architecture):
        raise PretrainError(
            f"timm has no model {name!r}; 'timm-mvhybrid models' and timm.list_models() name them"
        )
    options = {"num_classes": 0, "dynamic_img_size": True, **arguments}
    if architecture in ALL_MODEL_NAMES:
        options["mask_token"] = True
    try:
        backbone: Any = create_model(name, pretrained=pretrained, drop_path_rate=drop_path_rate, **options)
    except TypeError as error:
        raise PretrainError(
            f"{name} cannot be made with {options} ({error}); pretraining takes timm's VisionTransformers and their "
            "arguments"
        ) from error
    _check(backbone, name)
    if checkpoint is not None:
        load_weights(backbone, checkpoint)
    if getattr(backbone, "mask_token", None) is None:
        backbone.mask_token = nn.Parameter(torch.zeros(1, backbone.embed_dim))
    return backbone


def _check(backbone: nn.Module, name: str) -> None:
    """Raises PretrainError for a model that the losses cannot train, or not wholly."""
    if not isinstance(backbone, VisionTransformer):
        raise PretrainError(
            f"{name} is a {type(backbone).__name__}; pretraining masks patch tokens, so it takes timm's "
            "VisionTransformers, ours among them"
        )
    for at_fault, problem in (
        (
            backbone.cls_token is None,
            "has no class token; make it with class_token=True, global_pool='token'",
        ),
        (
            isinstance(backbone.norm, nn.Identity),
            "normalises after its pooling; make it with global_pool='token'",
        ),
        (
            backbone.attn_pool is not None,
            "pools by attention, which nothing would train; take global_pool='token'",
        ),
        (
            not isinstance(backbone.head, nn.Identity),
            "has a classifier, which nothing would train; take num_classes=0",
        ),
        (
            not isinstance(backbone.patch_drop, nn.Identity),
            "drops patches, and masks would miss theirs; take patch_drop_rate=0",
        ),
    ):
        if at_fault:
            raise PretrainError(f"{name} {problem}")


class PatchMasking:
    """Runs a backbone with the mask token in place of some patches.

    Ours takes masks itself. In any other VisionTransformer a hook after the patch embedding puts the token in; the
    position embedding is added to it, as in DINOv2.

    Args:
        backbone: Of ``create_backbone``.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone: Any = backbone
        self._takes_masks = isinstance(backbone, HybridVisionTransformer)
        self._mask: Tensor | None = None
        if not self._takes_masks:
            patch_embed: Any = backbone.patch_embed
            patch_embed.register_forward_hook(self._replace)

    def forward_features(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Computes the normalised tokens.

        Args:
            images: (batch, 3, height, width), normalised.
            mask: True where a patch is hidden, bool, (batch, patches); None for no mask.

        Returns:
            (batch, prefix tokens + patches, width).
        """
        if self._takes_masks:
            return self._backbone.forward_features(images, mask)
        self._mask = mask
        try:
            return self._backbone.forward_features(images)
        finally:
            self._mask = None

    def _replace(self, module: nn.Module, arguments: Any, patches: Tensor) -> Tensor:
        if self._mask is None:
            return patches
        hidden = self._mask.view(patches.shape[:-1]).unsqueeze(-1)
        return torch.where(hidden, self._backbone.mask_token.to(patches.dtype), patches)
