"""What the library that resizes a patch does to its pixels and to the features, on patches of the example slide.

Pretraining crops uint8 by torch's kernel, which torchvision's v2 calls too; evaluation and timm's transforms resize
Pillow images; pipelines may resize float tensors. No weights are published, so the features are those of untrained
models of fixed seeds: they tell how much reaches the output, not what training would make of it.
"""

from collections.abc import Callable

import numpy as np
import PIL
import timm
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

import timm_mvhybrid  # noqa: F401

from .data import MEAN, STD, example_patches
from .goals import Goal
from .measure import Spread
from .report import Report, Table
from .settings import Settings

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = ((224, 256), (512, 256))
"""From and to, in px: enlarged as patches of 224 px are for our models, and halved as a 40 × patch is for 20 ×."""
PRETRAINING = "torchvision, uint8, channels last (pretraining's crops)"
FIGURE = "{source_px} → {target_px} px, {mode}: change of features, {name} / Pillow"
GOALS = [
    Goal(
        figure=FIGURE.format(source_px=source_px, target_px=target_px, mode="bicubic", name=PRETRAINING),
        relation="≤",
        bound=0.002,
    )
    for source_px, target_px in SIZES
]
MODELS = ("mvhybrid_small_patch16_256", "vim_einfft_small_patch16_256", "hydra_hybrid_small_patch16_256")

Resize = Callable[[NDArray[np.uint8], int, str], Tensor]


def run(settings: Settings) -> Report:
    """Resizes the patches in each way and compares pixels and features with Pillow's.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    num_images = 2 if settings.quick else 16
    models = {name: _untrained(name) for name in (("test_mvhybrid",) if settings.quick else MODELS)}
    pixel_rows, feature_rows = [], []
    figures: dict[str, Spread] = {}
    for source_px, target_px in SIZES:
        patches = example_patches(num_images, source_px)
        for mode in RESAMPLING:
            reference = _resize_all(_pillow, patches, target_px, mode)
            expected = {name: _features(model, reference) for name, model in models.items()}
            for name, resize in CONTENDERS.items():
                resized = _resize_all(resize, patches, target_px, mode)
                case = f"{source_px} → {target_px} px, {mode}"
                pixel_rows.append([case, name, *_pixel_cells(resized, reference)])
                changes = {
                    model: _relative_change(_features(models[model], resized), expected[model])
                    for model in models
                }
                feature_rows.append([case, name, *(f"{change:.2g}" for change in changes.values())])
                worst = max(changes.values())
                figure = FIGURE.format(source_px=source_px, target_px=target_px, mode=mode, name=name)
                figures[figure] = Spread(median=worst, low=min(changes.values()), high=worst)
    return Report(
        name="resize",
        title="Resizing by torchvision and by Pillow: pixels and features",
        method=(
            "Patches of the example slide's tissue, resized in each way and compared with Pillow's, which evaluation "
            "and timm's transforms use. Pixels in levels of 255, over all channels; features as the largest relative "
            "norm of a patch's difference, in float32, by untrained models of seed 0."
        ),
        figures=figures,
        goals=GOALS,
        tables=[
            Table(
                title=f"Pixels beside Pillow's, {num_images} patches",
                columns=["case", "resized by", "other by more than half a level, %", "mean", "largest"],
                rows=pixel_rows,
            ),
            Table(
                title="Features beside those of Pillow's, largest relative norm of the difference",
                columns=["case", "resized by", *models],
                rows=feature_rows,
            ),
        ],
        notes=[f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"],
        judged=not settings.quick,
    )


def _pillow(patch: NDArray[np.uint8], size_px: int, mode: str) -> Tensor:
    resized = Image.fromarray(patch).resize((size_px, size_px), RESAMPLING[mode])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()


def _torchvision(dtype: torch.dtype, *, antialias: bool, channels_last: bool = False) -> Resize:
    def resize(patch: NDArray[np.uint8], size_px: int, mode: str) -> Tensor:
        pixels = torch.from_numpy(patch).permute(2, 0, 1)
        if not channels_last:
            pixels = pixels.contiguous()
        resized = F.resize(
            pixels.to(dtype), [size_px, size_px], F.InterpolationMode(mode), antialias=antialias
        )
        # bicubic weights overshoot, and a float tensor keeps it
        return resized.float()

    return resize


CONTENDERS: dict[str, Resize] = {
    PRETRAINING: _torchvision(torch.uint8, antialias=True, channels_last=True),
    "torchvision, uint8": _torchvision(torch.uint8, antialias=True),
    "torchvision, float32": _torchvision(torch.float32, antialias=True),
    "torchvision, float32, no antialiasing": _torchvision(torch.float32, antialias=False),
}


def _resize_all(resize: Resize, patches: list[NDArray[np.uint8]], size_px: int, mode: str) -> Tensor:
    return torch.stack([resize(patch, size_px, mode) for patch in patches])


def _pixel_cells(resized: Tensor, reference: Tensor) -> list[str]:
    difference = (resized - reference).abs()
    return [
        f"{100 * (difference > 0.5).float().mean():.2g}",
        f"{difference.mean():.2g}",
        f"{difference.max():.3g}",
    ]


def _untrained(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0).eval()


@torch.inference_mode()
def _features(model: torch.nn.Module, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return torch.cat([model(batch) for batch in ((pixels / 255 - mean) / std).split(4)])


def _relative_change(features: Tensor, expected: Tensor) -> float:
    return float(((features - expected).norm(dim=1) / expected.norm(dim=1)).max())
