"""The weights of a command's one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ..embed.backbone import Backbone, load_backbone
from .flags import UsageError
from .messages import say


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """Weights.

    Attributes:
        pretrained: Take the weights that timm downloads.
        checkpoint: Take the weights of this file (safetensors, or PyTorch tensors) instead.
        seed: Seed of random weights, if neither is given.
    """

    pretrained: bool = False
    checkpoint: Annotated[Path | None, arg(metavar="FILE")] = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pretrained and self.checkpoint is not None:
            raise UsageError("`pretrained` and `checkpoint` exclude each other")

    def load(self, name: str) -> Backbone:
        """Builds the model, and warns where its weights are random."""
        backbone = load_backbone(name, pretrained=self.pretrained, checkpoint=self.checkpoint, seed=self.seed)
        if backbone.weights == "random":
            say(
                "warning: the weights are random, so the features carry no meaning; "
                "give `checkpoint=FILE` or `pretrained=True`"
            )
        return backbone
