"""The residual block of the state-space half: a sequence mixer, then a channel mixer."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn


class SSMBlock(nn.Module):
    """x ← x + DropPath(γ₁ · mixer(norm1(x))); x ← x + DropPath(γ₂ · channel_mixer(norm2(x))).

    Args:
        dim: Width of the tokens.
        mixer: Sequence mixer, (batch, length, dim) → the same.
        channel_mixer: Channel mixer, or None for a block without its second half.
        norm_layer: Makes a normalisation from ``dim``.
        init_values: Initial γ; None for no γ at all.
        drop: Dropout after the mixer; the channel mixer has its own, if any.
        drop_path: Probability of skipping a branch.
        device: Where the parameters are made.
        dtype: Their dtype.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        channel_mixer: nn.Module | None,
        norm_layer: Callable[..., nn.Module],
        init_values: float | None = None,
        drop: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}

        def layer_scale() -> nn.Module:
            return nn.Identity() if init_values is None else LayerScale(dim, init_values=init_values, **dd)

        def skip_path() -> nn.Module:
            return DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

        self.norm1 = norm_layer(dim, **dd)
        self.mixer = mixer
        self.drop = nn.Dropout(drop)
        self.ls1 = layer_scale()
        self.drop_path1 = skip_path()
        self.channel_mixer = channel_mixer
        if channel_mixer is not None:
            self.norm2 = norm_layer(dim, **dd)
            self.ls2 = layer_scale()
            self.drop_path2 = skip_path()

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens (batch, length, dim) in scan order; keeps their dtype."""
        x = x + self.drop_path1(self.ls1(self.drop(self.mixer(self.norm1(x)))))
        if self.channel_mixer is not None:
            # EinFFT returns float32; the residual stream of a half-width model stays half-width
            x = x + self.drop_path2(self.ls2(self.channel_mixer(self.norm2(x)).to(x.dtype)))
        return x
