"""Which grid of patches a position embedding belongs to, and how it is resampled to another."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import register_notrace_function, resample_abs_pos_embed
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from .errors import CheckpointError

# rows and columns of patches, in the metadata of a safetensors file and among the tensors of a training checkpoint
PATCH_GRID = "patch_grid"

Grid = tuple[int, int]


def grid_of(model: nn.Module) -> Grid:
    """Reads a model's grid."""
    patch_embed: Any = model.patch_embed
    rows, columns = patch_embed.grid_size
    return int(rows), int(columns)


def grid_to_text(grid: Grid) -> str:
    """Writes a grid for a file's metadata."""
    return json.dumps(list(grid))


def grid_from_text(text: str) -> Grid:
    """Reads what ``grid_to_text`` wrote.

    Raises:
        ValueError: It is not a grid.
    """
    try:
        rows, columns = json.loads(text)
        if not (type(rows) is type(columns) is int and rows > 0 and columns > 0):
            raise ValueError("not two positive whole numbers")
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{text}' as {PATCH_GRID}, which is not rows and columns of patches") from error
    return rows, columns


def trained_grid(
    num_patches: int,
    patch: tuple[int, ...] | None,
    model: nn.Module,
    *,
    stated: Grid | None = None,
    input_size: Sequence[int] | None = None,
) -> Grid:
    """Finds the grid that a position embedding was trained on.

    What the file states comes first, then what its configuration states; where nothing is stated and the numbers of
    patches agree, the grid is the model's own. The registered input size of the architecture states nothing about a
    file.

    Args:
        num_patches: Patches that the position embedding covers.
        patch: Patch size of the checkpoint in px; None where it is not known.
        model: The model to load.
        stated: The grid that the file states.
        input_size: Channels, height and width that the file's configuration states, in px.

    Raises:
        CheckpointError: The file contradicts itself, or the grid cannot be known.
    """
    if stated is not None:
        if math.prod(stated) != num_patches:
            raise CheckpointError(
                f"the file states a grid of {stated[0]} × {stated[1]} patches, but its pos_embed covers {num_patches}: it "
                "is damaged; copy, download or export it again"
            )
        return stated
    configured, registered = _input_sizes(model)
    own = grid_of(model)
    of_configuration = [_in_patches(size, patch) for size in (input_size, configured)]
    side = math.isqrt(max(num_patches, 0))
    for grid in (*of_configuration, own, _in_patches(registered, patch), (side, side)):
        if grid is not None and math.prod(grid) == num_patches:
            return grid
    raise CheckpointError(
        f"the checkpoint's pos_embed covers {num_patches} patches, which is not a square grid and fits neither the "
        f"model's grid {own} nor the configured input size {input_size or configured or registered}; pass "
        "pretrained_cfg_overlay=dict(input_size=(3, height, width)) with the size it was trained at"
    )


def _input_sizes(model: nn.Module) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """Reads the input size that was given in the model's configuration, and the registered one."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    found = config.get("input_size")
    entry = get_pretrained_cfg(config.get("architecture") or "", allow_unregistered=True)
    registered = None if entry is None else entry.input_size
    same = found is not None and registered is not None and tuple(found) == tuple(registered)
    return (None if same else found), registered


def _in_patches(size: Sequence[int] | None, patch: tuple[int, ...] | None) -> Grid | None:
    if not size or patch is None:
        return None
    return int(size[-2]) // patch[0], int(size[-1]) // patch[1]


@register_notrace_function
def resample_with_older_timm(
    posemb: Tensor, new_size: list[int], old_size: list[int], num_prefix_tokens: int = 1
) -> Tensor:
    """Resamples a position embedding as timm does, also onto a square grid of as many patches.

    timm 1.0.26 takes equal numbers of tokens for equal grids, whatever the old grid was; passing single values instead
    of tokens keeps it from counting them.

    Args:
        posemb: Position embedding, (1, prefix + patches, dim).
        new_size: Rows and columns of the result.
        old_size: Rows and columns that it has.
        num_prefix_tokens: Leading tokens, which are kept.
    """
    if old_size[0] == new_size[0] and old_size[1] == new_size[1]:
        return posemb
    prefix, patches = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    values = resample_abs_pos_embed(
        patches.reshape(1, -1, 1), new_size=new_size, old_size=old_size, num_prefix_tokens=0
    )
    return torch.cat([prefix, values.reshape(1, -1, posemb.shape[2])], dim=1)


def _sees_grids() -> bool:
    """Says whether this timm distinguishes a column of patches from a square."""
    column = torch.tensor([0.0, 1.0, 2.0, 3.0], device="cpu").view(1, 4, 1)
    square = resample_abs_pos_embed(column, new_size=[2, 2], old_size=[4, 1], num_prefix_tokens=0)
    return not torch.equal(square, column)


# timm's own where it is right: it can be exported and traced
resample_position = resample_abs_pos_embed if _sees_grids() else resample_with_older_timm
