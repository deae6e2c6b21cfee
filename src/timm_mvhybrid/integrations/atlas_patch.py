r"""AtlasPatch: this file is a plugin that registers the six backbones, each under its timm name.

    PLUGIN=$(python -c "import timm_mvhybrid.integrations.atlas_patch as plugin; print(plugin.__file__)")
    atlaspatch process slide.svs --output out --patch-size 256 --target-mag 20 --feature-plugin "$PLUGIN" \
        --feature-extractors mvhybrid_small_patch16_256

Weights are the published ones. For your own weights, write your own plugin:

    from timm_mvhybrid.integrations.atlas_patch import register_model

    def register_feature_extractors(registry, device, dtype, num_workers):
        register_model(registry, "my_mvhybrid", "mvhybrid_small_patch16_256", device, dtype, num_workers,
                       checkpoint="weights.safetensors")

AtlasPatch casts model and patches to one precision, float16 by default (float32 on a CPU). The decay rates of the scans
stay in float32 even then; for features of full precision give ``--feature-precision float32``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

# AtlasPatch runs the file outside its package, where relative imports do not work
from timm_mvhybrid.embed.backbone import load_encoder
from timm_mvhybrid.models import MODEL_NAMES

_INSTALL = "atlas-patch is not installed; run: pip install atlas-patch"


def register_feature_extractors(
    registry: Any, device: torch.device, dtype: torch.dtype, num_workers: int = 0
) -> None:
    """Registers the six backbones with published weights; AtlasPatch calls this function by its name."""
    for name in MODEL_NAMES:
        register_model(registry, name, name, device, dtype, num_workers, pretrained=True)


def register_model(
    registry: Any,
    name: str,
    model_name: str,
    device: torch.device,
    dtype: torch.dtype,
    num_workers: int = 0,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    **model_args: Any,
) -> None:
    """Registers one model; it is built, and its weights are read, when AtlasPatch first needs it.

    Raises:
        ImportError: AtlasPatch is not installed.
        ValueError: Both kinds of weights are requested, or the name is taken.
    """
    try:
        from atlas_patch.models.patch.custom import CustomEncoderComponents, register_custom_encoder
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    if pretrained and checkpoint is not None:
        raise ValueError("pretrained and checkpoint exclude each other; give one of them")

    def load(device: torch.device, dtype: torch.dtype) -> Any:
        model, preprocess = load_encoder(
            model_name, pretrained=pretrained, checkpoint=checkpoint, **model_args
        )
        return CustomEncoderComponents(model=model.to(device=device, dtype=dtype), preprocess=preprocess)

    plan = timm.create_model(model_name, num_classes=0, device=torch.device("meta"), **model_args)
    register_custom_encoder(
        registry=registry,
        name=name,
        embedding_dim=plan.head_hidden_size,
        loader=load,
        device=device,
        dtype=dtype,
        num_workers=num_workers,
    )
