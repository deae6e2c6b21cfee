"""A model with an ST token, as a backbone that gives one vector an image: the ST token, or class and ST token side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, cat, nn

from ..embed.backbone import Backbone, TokenKind, register_token_loader
from ..runtime.digest import file_sha256
from .expression_model import ExpressionModel, load, stated_file
from .st_model import STModel


class TokenFeatures(nn.Module):
    """Looks like a timm model whose features are those of tokens.

    Args:
        model: The model.
        kind: "class", "st", or "class+st".
    """

    def __init__(self, model: STModel, kind: TokenKind) -> None:
        super().__init__()
        self.model, self.kind = model, kind
        backbone: Any = model.backbone
        self.pretrained_cfg, self.patch_embed = backbone.pretrained_cfg, backbone.patch_embed
        self.dynamic_img_size = getattr(backbone, "dynamic_img_size", False)
        self.num_features = model.embed_dim * len(kind.split("+"))
        self.global_pool, self.num_prefix_tokens = kind, 0

    def forward_features(self, x: Tensor) -> Tensor:
        """Computes the tokens as one, (batch, 1, dim)."""
        found = self.model.features(x)
        return cat([found[name] for name in self.kind.split("+")], dim=-1).unsqueeze(1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Takes the token, (batch, dim)."""
        return x[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Computes the tokens side by side, (batch, dim)."""
        return self.forward_head(self.forward_features(x))


def load_token_backbone(source: str | Path, kind: TokenKind) -> Backbone:
    """Loads what a run of MINT left as a backbone, for embedding and evaluation.

    Args:
        source: See :func:`~timm_mvhybrid.finetune.load`.
        kind: "class", "st", or "class+st".

    Returns:
        The backbone; its name ends in the kind.

    Raises:
        FinetuneError: There is no ST model, or it is not what was exported.
        CheckpointError: The backbone is missing, damaged, or not what was exported.
    """
    model: ExpressionModel = load(source)
    architecture = str(model.backbone.pretrained_cfg["architecture"])
    file = stated_file(source)
    return Backbone(
        model=TokenFeatures(model, kind).eval(),
        name=f"{architecture}.{kind}",
        weights=f"{file.parent.name}/{file.name}",
        weights_sha256=file_sha256(file),
    )


register_token_loader(load_token_backbone)
