"""Checkpoints of other origins → state dicts that fill a backbone, or an error that says why they cannot.

Accepted: this package's own format; the official MV_Hybrid repository's keys; DINOv2 training checkpoints and released
DINOv2 weights; timm's ViT; stock Vision Mamba; each of them as any training framework wraps it (``key_conversion``).
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from ..layers.token_order import to_timm_order
from .errors import CheckpointError
from .key_conversion import take_backbone
from .position_grid import Grid, grid_of, resample_position, trained_grid
from .weights_file import check_finite

_logger = logging.getLogger(__name__)

_HEADS = ("head.", "attn_pool.", "fc_norm.")
_MAX_NAMES = 6


def checkpoint_filter_fn(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    *,
    grid: Grid | None = None,
    input_size: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Converts a checkpoint's state dict into the model's names and shapes.

    Renames, resizes position embedding and patch projection, and then requires every parameter of the backbone. A
    classifier head that is missing or has another shape is left out, and timm makes a new one. A checkpoint without
    LayerScale fills the model's with ones, which is the same function.

    Args:
        state_dict: A state dict, or a training checkpoint that holds one.
        model: The backbone that will load the result.
        grid: Rows and columns of patches that the position embedding was trained on, where the file states them.
        input_size: Channels, height and width in px that the file's configuration states.

    Returns:
        A state dict for ``model.load_state_dict``.

    Raises:
        CheckpointError: Parameters of the backbone are missing, unexpected, or of another shape; named in the message.
    """
    found, weights = take_backbone(state_dict)
    for matches, convert in _CONVERSIONS:
        if any(matches(key) for key in weights):
            weights = convert(weights, model)
    _fit_optional_parameters(weights, model)
    _fit_sizes(weights, model, grid, input_size)
    _fit_head(weights, model)
    _check_coverage(weights, model, found.prefix)
    check_types(weights, model)
    return weights


def fit_backbone(
    checkpoint: Mapping[str, Any],
    model: Any,
    *,
    grid: Grid | None = None,
    input_size: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Converts a checkpoint as ``checkpoint_filter_fn`` does, and adapts the patch projection to the input channels.

    Channels are repeated or cut off and scaled, as timm 1.0.31 does, so that the same value in every channel gives the
    same features; a single channel takes the sum.

    Args:
        checkpoint: A state dict, or a training checkpoint that holds one.
        model: The backbone that will load the result.
        grid: Rows and columns of patches that the position embedding was trained on, where the file states them.
        input_size: Channels, height and width in px that the file's configuration states.

    Raises:
        CheckpointError: It does not fit.
    """
    state = checkpoint_filter_fn(checkpoint, model, grid=grid, input_size=input_size)
    key = "patch_embed.proj.weight"
    weight, wanted = state[key], model.patch_embed.proj.in_channels
    found = weight.shape[1]
    if found == wanted:
        return state
    _logger.info("Adapted %s from %d to %d input channels.", key, found, wanted)
    if wanted == 1:
        adapted = weight.float().sum(dim=1, keepdim=True)
    else:
        repeated = weight.float().repeat(1, -(-wanted // found), 1, 1)[:, :wanted]
        adapted = repeated * (found / wanted)
    state[key] = adapted.to(weight.dtype)
    return state


def whole_state(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """Turns a state dict in memory into one that fills a backbone, or says why it cannot.

    If its names and shapes are the model's own it stays as it is, including parts of sharded tensors and placeholders;
    otherwise it is converted.

    Args:
        state_dict: A state dict, or a training checkpoint that holds one.
        model: The backbone that will load the result.

    Returns:
        A state dict with every tensor of the model, including its head's.

    Raises:
        CheckpointError: It does not cover the model, or is not of finite floating-point numbers.
    """
    own = model.state_dict()
    if own.keys() != state_dict.keys() or any(state_dict[key].shape != own[key].shape for key in own):
        state_dict = fit_backbone(state_dict, model)
        check_cover(state_dict, model)
    check_types(state_dict, model)
    check_finite(state_dict, "the checkpoint")
    return state_dict


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


def _fit_sizes(
    weights: dict[str, Tensor], model: nn.Module, stated: Grid | None, input_size: Sequence[int] | None
) -> None:
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
    grid = grid_of(model)
    old_grid = trained_grid(
        pos_embed.shape[1] - num_prefix, old_patch, model, stated=stated, input_size=input_size
    )
    if old_grid != grid:
        _logger.info("Resampled the position embedding from %s to %s patches.", old_grid, grid)
        weights["pos_embed"] = resample_position(
            pos_embed, new_size=list(grid), old_size=list(old_grid), num_prefix_tokens=num_prefix
        )


def _fit_head(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Leaves out a classifier that the model does not have or has in another shape."""
    own = model.state_dict()
    for key in [key for key in weights if key.startswith(_HEADS)]:
        if key not in own or own[key].shape != weights[key].shape:
            _logger.info("Left %r of the checkpoint out; the model has another head.", key)
            del weights[key]


def _check_coverage(weights: dict[str, Tensor], model: nn.Module, prefix: str) -> None:
    """Raises CheckpointError unless the state dict covers the backbone exactly."""
    head = {key for key in model.state_dict() if key.startswith(_HEADS)}
    if misfit := describe_misfit(weights, model, optional=head, any_channels=True):
        layout = getattr(model, "layout", lambda: type(model).__name__)()
        under = f"under '{prefix}', " if prefix else ""
        raise CheckpointError(
            f"{under}the checkpoint does not fit the model ({layout}): {misfit}. "
            "Create the model that the checkpoint was trained as, with the same options (depth, ssm_depth, "
            "channel_mixer, init_values, reg_tokens, ...)"
        )


def check_cover(weights: Mapping[str, Tensor], model: nn.Module, optional: Collection[str] = ()) -> None:
    """Raises CheckpointError unless a state dict has every tensor of a model, and no other.

    Raises:
        CheckpointError: It differs; the message says how.
    """
    if misfit := describe_misfit(weights, model, optional=optional):
        raise CheckpointError(
            f"the checkpoint does not fit the model: {misfit}. Create the model that the checkpoint was trained as, with "
            "the same options (num_classes=0 for features only)"
        )


def check_types(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises CheckpointError where a state dict holds whole or complex numbers instead of real ones.

    Loading would silently convert them, even the codes of quantised weights.

    Raises:
        CheckpointError: A tensor is of such a type; the message names it.
    """
    own = model.state_dict()
    faults = [
        f"{key} {str(value.dtype).removeprefix('torch.')}"
        for key, value in weights.items()
        if own[key].is_floating_point() and not value.is_floating_point()
    ]
    if faults:
        raise CheckpointError(
            f"{len(faults)} of its tensors are not of floating-point numbers ({_shorten(faults)}), perhaps quantised; save "
            "the weights before quantisation, or dequantised"
        )


def describe_misfit(
    weights: Mapping[str, Tensor],
    model: nn.Module,
    *,
    optional: Collection[str] = (),
    any_channels: bool = False,
) -> str:
    """Describes how a state dict differs from a model's names and shapes."""

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
