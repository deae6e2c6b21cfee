"""A teacher, sharded or not → one safetensors file that timm loads."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from ..runtime.atomic_file import write_file
from ..weights.position_grid import PATCH_GRID, grid_of, grid_to_text
from .world import World

NAME = "teacher.safetensors"


def gather_backbone(network: nn.Module, world: World) -> dict[str, Tensor]:
    """Collects the weights of a backbone; every process calls it.

    Returns:
        Whole weights on the CPU by timm's names, without the mask token, which only pretraining uses; empty in all
        processes but the first.
    """
    backbone = network.backbone
    assert isinstance(backbone, nn.Module)
    weights: dict[str, Tensor] = {}
    for name, value in backbone.state_dict().items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        if world.is_first and name != "mask_token":
            weights[name] = whole.detach().to("cpu", copy=True).contiguous()
    return weights


def write_teacher(network: nn.Module, folder: Path, world: World) -> Path:
    """Writes the backbone of a teacher; every process calls it.

    Raises:
        OutputError: The disk does not take it.
    """
    weights = gather_backbone(network, world)
    backbone = network.backbone
    assert isinstance(backbone, nn.Module)
    path = folder / NAME
    metadata = {"format": "pt", PATCH_GRID: grid_to_text(grid_of(backbone))}
    world.on_first(lambda: write_file(path, save(weights, metadata)))
    return path
