"""Initial weights: as the published models start, or by Mamba's textbook rules for the mixers."""

import math
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import nn

from ..layers import HydraMixer, MambaVisionMixer, SSMBlock, VimMixer

INIT_SCHEMES = ("official", "mamba")
MIXERS = (HydraMixer, MambaVisionMixer, VimMixer)


def reset_parameters(model: Any) -> None:
    """Lets every submodule that can draw its own initial weights do so, children before parents."""
    for module in reversed(list(model.modules())):
        if module is not model and hasattr(module, "reset_parameters"):
            module.reset_parameters()


@torch.no_grad()
def initialize(model: Any, scheme: str, ssm_mixer: str | None) -> None:
    """Initialises a model whose submodules have just drawn their own weights.

    "official": every linear layer normal with standard deviation 0.02, biases 0. In models with MambaVision or Hydra
    mixers that includes the mixers' own projections, so Mamba's initial step sizes survive only in Hydra's
    ``dt_bias``. Models with Vim mixers follow Vision Mamba instead: textbook projections, the backward ``dt_proj``
    bias 0, output projections divided by √depth, LeCun-normal patch embedding.

    "mamba": the mixers keep the textbook initialisation of their ``reset_parameters``; all else as in "official".

    Class and register tokens and a position embedding are normal with standard deviation 0.02; in models of attention
    alone the tokens start at 1e-6, as DINOv2's. The mask token is normal with ``model.mask_token_std``, 0 as published.

    Args:
        model: The backbone.
        scheme: "official" or "mamba".
        ssm_mixer: The kind of its state-space mixers, or None for attention alone.
    """
    own_projections = {
        id(linear)
        for mixer in model.modules()
        if isinstance(mixer, MIXERS)
        for linear in mixer.modules()
        if isinstance(linear, nn.Linear)
    }
    keep_mixers = scheme == "mamba" or ssm_mixer == "vim"
    for module in model.modules():
        if isinstance(module, nn.Linear) and not (keep_mixers and id(module) in own_projections):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if scheme == "official" and ssm_mixer == "vim":
        _initialize_like_vim(model)
    token_std = 1e-6 if ssm_mixer is None else 0.02
    for name, std in (("cls_token", token_std), ("reg_token", token_std), ("pos_embed", 0.02)):
        parameter = getattr(model, name)
        if parameter is not None:
            nn.init.normal_(parameter, std=std)
    if model.mask_token is not None:
        if model.mask_token_std > 0:
            nn.init.normal_(model.mask_token, std=model.mask_token_std)
        else:
            # draws nothing, so that all else starts as it always has
            nn.init.zeros_(model.mask_token)


@torch.no_grad()
def scale_output_projections(blocks: Any) -> None:
    """Divides the output projections of block i, counted from 1, by √(2 i), in place."""
    for index, block in enumerate(blocks):
        ssm = isinstance(block, SSMBlock)
        outputs = [block.mixer.out_proj if ssm else block.attn.proj]
        mlp = block.channel_mixer if ssm else block.mlp
        if hasattr(mlp, "fc2"):
            outputs.append(mlp.fc2)
        for linear in outputs:
            linear.weight.div_(math.sqrt(2.0 * (index + 1)))


def _initialize_like_vim(model: Any) -> None:
    """Applies what Vision Mamba's models add to the mixers' own initialisation."""
    depth = len(model.blocks)
    for mixer in model.modules():
        if isinstance(mixer, VimMixer):
            nn.init.zeros_(mixer.dt_proj_b.bias)
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            mixer.out_proj.weight.div_(math.sqrt(depth))
    projection = model.patch_embed.proj
    fan_in = projection.weight[0].numel()
    # 0.8796… is the standard deviation of a unit normal cut at ±2
    std = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(projection.weight, std=std, a=-2 * std, b=2 * std)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
