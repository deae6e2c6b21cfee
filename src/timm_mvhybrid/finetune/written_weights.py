"""Whole weights on every process → files that the first one writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from ..runtime.atomic_file import write_file
from ..runtime.tensor_digest import tensors_sha256
from ..training.world import World
from ..weights.position_grid import PATCH_GRID, grid_of, grid_to_text
from ..weights.weights_file import TENSORS_SHA256


def write_tensors(
    path: Path, weights: Mapping[str, Tensor], world: World, metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes a safetensors file; every process calls it.

    Args:
        path: The file.
        weights: Whole tensors, which processes but the first may lack.
        world: The processes.
        metadata: What the file says of itself.

    Returns:
        The file.

    Raises:
        OutputError: The disk does not take it.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    stated = {"format": "pt", **(metadata or {}), TENSORS_SHA256: tensors_sha256(whole)}
    world.on_first(lambda: write_file(path, save(whole, stated)))
    return path


def write_encoder(path: Path, weights: Mapping[str, Tensor], backbone: nn.Module, world: World) -> Path:
    """Writes the weights of an ordinary backbone by timm's names; every process calls it.

    Args:
        path: The file.
        weights: Its weights; a mask token is left out.
        backbone: What they are of, for the grid of its position embedding.
        world: The processes.

    Returns:
        The file.

    Raises:
        OutputError: The disk does not take it.
    """
    kept = {name: tensor for name, tensor in weights.items() if name != "mask_token"}
    return write_tensors(path, kept, world, {PATCH_GRID: grid_to_text(grid_of(backbone))})
