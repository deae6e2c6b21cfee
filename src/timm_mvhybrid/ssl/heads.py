"""Tokens → scores for prototypes."""

from __future__ import annotations

from itertools import pairwise
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.precision import at_least_float32, autocast_disabled
from ..training.settings import require
from .prototype_loss import PatchTargets, prototype_cross_entropy
from .prototype_scores import product_dtype


class ProjectionHead(nn.Module):
    """A perceptron, L2 normalisation to a bottleneck, and scores for prototypes of length 1.

    Source: DINO (arXiv 2104.14294), appendix C; DINOv2 (arXiv 2304.07193). Linear layers are normal with standard
    deviation 0.02, cut at ±2; biases 0.

    Args:
        in_dim: Width of the tokens.
        num_prototypes: K.
        hidden_dim: Width of the hidden layers.
        bottleneck_dim: Width of the bottleneck, d.
        num_layers: Linear layers in front of the prototypes.
        learn_gain: Whether each prototype's length is learned, from 1. DINOv2's code learns it, DINO's does not.

    Raises:
        PretrainError: A size is below 1.
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        learn_gain: bool = False,
    ) -> None:
        super().__init__()
        sizes = dict(
            in_dim=in_dim,
            num_prototypes=num_prototypes,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            num_layers=num_layers,
        )
        for name, size in sizes.items():
            require(size >= 1, name, size, "at least 1")
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        self.last_layer_gain = nn.Parameter(torch.empty(num_prototypes, 1)) if learn_gain else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws new initial weights."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # only directions count, but the shorter a vector, the faster AdamW turns it: DINO's are those of a linear layer
        bound = self.last_layer.shape[1] ** -0.5
        nn.init.uniform_(self.last_layer, -bound, bound)
        if self.last_layer_gain is not None:
            nn.init.ones_(self.last_layer_gain)

    @overload
    def forward(self, x: Tensor, *, targets: PatchTargets | None = None) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, *, factored: bool) -> Tensor | tuple[Tensor, Tensor]: ...

    def forward(
        self, x: Tensor, *, factored: bool = False, targets: PatchTargets | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores tokens, or does with the scores what need not hold them all.

        It is one method, because FSDP gathers the prototypes for the duration of a forward only.

        Args:
            x: Tokens, (M, in_dim); M may be 0.
            factored: Whether to return the scores' two factors.
            targets: Targets of the tokens, for the loss.

        Returns:
            The scores (M, K); or bottleneck features (M, d) and a copy of the prototypes (K, d), whose product they
            are, in the dtype of the product; or the weighted sum of the tokens' cross-entropies.
        """
        features = self._bottleneck(x)
        prototypes = self._prototypes()
        if targets is not None:
            return prototype_cross_entropy(features, prototypes, targets)
        if factored:
            dtype = product_dtype(features)
            return features.to(dtype), prototypes.to(dtype)
        return F.linear(features, prototypes)

    def _bottleneck(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        with autocast_disabled(x.device.type):
            return F.normalize(at_least_float32(x), dim=-1).to(self.last_layer.dtype)

    def _prototypes(self) -> Tensor:
        with autocast_disabled(self.last_layer.device.type):
            prototypes = F.normalize(at_least_float32(self.last_layer), dim=-1)
            if self.last_layer_gain is not None:
                prototypes = prototypes * self.last_layer_gain
            return prototypes.to(self.last_layer.dtype)
