"""The models of the comparison: ours, and timm's ViT-S of the same depth, width and number of tokens."""

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import timm_mvhybrid  # noqa: F401  (registers the models)

VIT = "timm ViT-S/16, depth 24"
MVHYBRID = "mvhybrid"
STATE_SPACE_MODELS = (MVHYBRID, "hydra_hybrid", "vim_einfft", "hydra_einfft")
SMALL_MODELS = (*STATE_SPACE_MODELS, "vit12", "vit24")


def create(name: str, quick: bool = False, device: torch.device | str = "cpu") -> nn.Module:
    """Makes one of our models, with random weights from a fixed seed.

    Args:
        name: One of ``SMALL_MODELS``.
        quick: Makes the tiny test model of that kind.
        device: Where.

    Returns:
        The model, in training mode.
    """
    torch.manual_seed(0)
    if quick:
        return timm.create_model(f"test_{name.replace('vit24', 'vit12')}").to(device)
    return timm.create_model(f"{name}_small_patch16_256").to(device)


def create_vit(quick: bool = False, device: torch.device | str = "cpu") -> nn.Module:
    """Makes timm's ViT, with random weights from a fixed seed.

    Args:
        quick: Makes one of the size of our test models.
        device: Where.

    Returns:
        The model, in training mode.
    """
    torch.manual_seed(0)
    size = (
        dict(img_size=128, embed_dim=64, depth=4, num_heads=2)
        if quick
        else dict(img_size=256, embed_dim=384, depth=24, num_heads=6)
    )
    return VisionTransformer(patch_size=16, num_classes=0, **size).to(device)


def images(batch: int, quick: bool = False, device: torch.device | str = "cpu") -> Tensor:
    """Draws images.

    Args:
        batch: How many.
        quick: At the size of the test models.
        device: Where.

    Returns:
        (batch, 3, 256, 256), or 128 px, in float32.
    """
    side = 128 if quick else 256
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
