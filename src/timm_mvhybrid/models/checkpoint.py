"""Checkpoints of other origins → state dicts that cover a backbone, or an error that says why not.

Accepted: this package's own format; the official MV_Hybrid repository's keys; DINOv2 training checkpoints (prefixes
``teacher.``, ``student.``, ``backbone.``, ``module.``) and released DINOv2 weights; timm's ViT; stock Vision Mamba.
"""

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from ..runtime.errors import TimmMVHybridError
from .token_order import to_timm_order

_logger = logging.getLogger(__name__)

_CONTAINERS = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model", "student")
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = ("module.", "teacher.", "student.", "backbone.")
_HEADS = ("head.", "attn_pool.", "fc_norm.")
_MAX_NAMES = 6


class CheckpointError(TimmMVHybridError, RuntimeError):
    """A checkpoint that cannot be read or does not fit the model."""


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Converts a checkpoint's state dict into the model's names and shapes.

    Renames, resizes position embedding and patch projection, and then demands that every parameter of the backbone is
    there. A classifier head that is missing or has another shape is left out, for timm to make anew. A checkpoint
    without LayerScale fills the model's with ones, which is the same function.

    Args:
        state_dict: A state dict, or a training checkpoint that holds one.
        model: The backbone that will load the result.

    Returns:
        A state dict for ``model.load_state_dict``.

    Raises:
        CheckpointError: Parameters of the backbone are missing, unexpected, or of another shape; named in the message.
    """
    weights = _strip_prefixes(_unwrap(state_dict))
    for matches, convert in _CONVERSIONS:
        if any(matches(key) for key in weights):
            weights = convert(weights, model)
    _fit_optional_parameters(weights, model)
    _fit_sizes(weights, model)
    _fit_head(weights, model)
    _check_coverage(weights, model)
    return weights


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Finds the state dict in a checkpoint, the teacher's before the student's, and keeps its tensors only."""
    for name in _CONTAINERS:
        inner = checkpoint.get(name)
        if isinstance(inner, Mapping):
            return _unwrap(inner)
    return {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def _strip_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes wrappers' prefixes off; where some keys have a prefix, keys without it are another module's."""
    for wrapper in _WRAPPERS:
        weights = {key.replace(wrapper, ""): value for key, value in weights.items()}
    while True:
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in weights)), None)
        if prefix is None:
            return weights
        weights = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def _from_official(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Renames the official repository's keys: ``blocks.blocks.i``, attention under ``mixer``, ``gamma_1``."""
    weights = {re.sub(r"^blocks\.blocks\.", "blocks.", key): value for key, value in weights.items()}
    attention = {match[1] for key in weights if (match := re.match(r"(blocks\.\d+\.)mixer\.qkv\.", key))}

    def rename(key: str) -> str:
        block = re.match(r"blocks\.\d+\.", key)
        if block and block[0] in attention:
            key = key.replace(".mixer.", ".attn.").replace(".channel_mixer.", ".mlp.")
        return re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key)

    return {rename(key): value for key, value in weights.items()}


def _from_chunked(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Renames DINOv2's blocks in chunks, ``blocks.<chunk>.<block>``."""
    return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key): value for key, value in weights.items()}


def _from_registers(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Converts DINOv2's register tokens, which have no position embedding though the class token has."""
    weights = dict(weights)
    registers = weights["reg_token"] = weights.pop("register_tokens")
    if "pos_embed" in weights:
        first, patches = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
        if getattr(model, "no_embed_class", False):
            weights["cls_token"] = weights["cls_token"] + first
            weights["pos_embed"] = patches
        else:
            weights["pos_embed"] = torch.cat([first, torch.zeros_like(registers), patches], dim=1)
    return weights


def _from_vim(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Renames stock Vision Mamba's keys and moves its class token's position embedding to the front."""
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r"^layers\.(\d+)\.norm\.", r"blocks.\1.norm1.", key)
        key = re.sub(r"^layers\.", "blocks.", key)
        renamed[re.sub(r"^norm_f\.", "norm.", key)] = value
    if "pos_embed" in renamed:
        renamed["pos_embed"] = to_timm_order(renamed["pos_embed"], num_prefix_tokens=1)
    return renamed


_Conversion = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]
_CONVERSIONS: tuple[tuple[Callable[[str], Any], _Conversion], ...] = (
    (re.compile(r"blocks\.blocks\.\d+\.").match, _from_official),
    (re.compile(r"blocks\.\d+\.\d+\.").match, _from_chunked),
    (re.compile(r"register_tokens$").match, _from_registers),
    (re.compile(r"layers\.\d+\.mixer\.").match, _from_vim),
)


def _fit_optional_parameters(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Adds or removes what changes no function: the mask token, and LayerScale of ones."""
    own = dict(model.named_parameters())
    if "mask_token" not in own:
        weights.pop("mask_token", None)
    elif "mask_token" not in weights:
        weights["mask_token"] = torch.zeros_like(own["mask_token"], device="cpu")
    scales = [name for name in own if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name)]
    if scales and not any(".ls1." in key or ".ls2." in key for key in weights):
        _logger.info("The checkpoint has no LayerScale; the model's is set to one.")
        weights.update({name: torch.ones_like(own[name], device="cpu") for name in scales})


def _fit_sizes(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Resamples the patch projection and the position embedding to the model's patch and grid size."""
    projection = weights.get("patch_embed.proj.weight")
    old_patch = None if projection is None or projection.ndim != 4 else tuple(projection.shape[2:])
    patch_embed: Any = model.patch_embed
    if old_patch is not None and old_patch != tuple(patch_embed.proj.weight.shape[2:]):
        size = list(patch_embed.proj.weight.shape[2:])
        weights["patch_embed.proj.weight"] = resample_patch_embed(projection, size, verbose=True)
    pos_embed = weights.get("pos_embed")
    if pos_embed is None or getattr(model, "pos_embed", None) is None:
        return
    num_prefix = 0 if model.no_embed_class else int(getattr(model, "num_prefix_tokens", 1))
    grid = tuple(patch_embed.grid_size)
    old_grid = _checkpoint_grid(pos_embed.shape[1] - num_prefix, old_patch, grid, model)
    if old_grid != grid:
        weights["pos_embed"] = resample_abs_pos_embed(
            pos_embed,
            new_size=list(grid),
            old_size=list(old_grid),
            num_prefix_tokens=num_prefix,
            verbose=True,
        )


def _checkpoint_grid(
    num_patches: int, patch: tuple[int, ...] | None, own_grid: tuple[int, ...], model: nn.Module
) -> tuple[int, ...]:
    """Finds the grid that a position embedding was trained on: as configured, the model's own, or square."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    if size and patch:
        configured = tuple(s // p for s, p in zip(size[1:], patch, strict=True))
        if math.prod(configured) == num_patches:
            return configured
    if math.prod(own_grid) == num_patches:
        return own_grid
    side = math.isqrt(max(num_patches, 0))
    if side * side == num_patches:
        return (side, side)
    raise CheckpointError(
        f"the checkpoint's pos_embed covers {num_patches} patches, which is no square grid and fits neither the "
        f"model's grid {own_grid} nor the configured input size {size}; pass "
        "pretrained_cfg_overlay=dict(input_size=(3, height, width)) with the size it was trained at"
    )


def _fit_head(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Leaves out a classifier that the model does not have or has in another shape."""
    own = model.state_dict()
    for key in [key for key in weights if key.startswith(_HEADS)]:
        if key not in own or own[key].shape != weights[key].shape:
            _logger.info("Left %s of the checkpoint out; the model has another head.", key)
            del weights[key]


def _check_coverage(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Raises CheckpointError unless the state dict covers the backbone exactly."""
    head = {key for key in model.state_dict() if key.startswith(_HEADS)}
    if misfit := describe_misfit(weights, model, optional=head, any_channels=True):
        layout = getattr(model, "layout", lambda: type(model).__name__)()
        raise CheckpointError(
            f"the checkpoint does not fit the model ({layout}): {misfit}. "
            "Create the model that the checkpoint was trained as, with the same options (depth, ssm_depth, "
            "channel_mixer, init_values, reg_tokens, ...)"
        )


def describe_misfit(
    weights: Mapping[str, Tensor],
    model: nn.Module,
    *,
    optional: Collection[str] = (),
    any_channels: bool = False,
) -> str:
    """Says in what a state dict differs from a model's names and shapes.

    Args:
        weights: The state dict.
        model: The model.
        optional: Names that may be missing.
        any_channels: Whether the patch projection's input channels may differ.

    Returns:
        The differences in words; "" where there are none.
    """

    def shape(key: str, value: Tensor) -> tuple[int, ...]:
        sizes = tuple(value.shape)
        return sizes[:1] + sizes[2:] if any_channels and key == "patch_embed.proj.weight" else sizes

    own = model.state_dict()
    missing = [key for key in own if key not in weights and key not in optional]
    unexpected = [key for key in weights if key not in own]
    reshaped = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in weights.items()
        if key in own and shape(key, value) != shape(key, own[key])
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return "; ".join(f"{len(names)} {what} ({_shorten(names)})" for what, names in found if names)


def _shorten(names: list[str]) -> str:
    """Joins the first few names."""
    rest = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
