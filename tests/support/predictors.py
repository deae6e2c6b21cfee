"""Predictors for tests: fitted on features of a tiny model with random weights, by which a slide can be predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.generated_slides import write_slide

from timm_mvhybrid.data import SlideSource, TilingOptions
from timm_mvhybrid.embed.backbone import Backbone, load_backbone
from timm_mvhybrid.embed.embedding_cache import EmbeddingOptions, transform_of, weights_digest
from timm_mvhybrid.embed.pooling import pooled_features
from timm_mvhybrid.predict import EncoderRecord, ExpressionPredictor

PATCH_PX = 64
GENES = ("WEAK", "ERBB2", "ACTB", "NOISE")


def encoder_record(backbone: Backbone, source: SlideSource, **changes: Any) -> EncoderRecord:
    """What a predictor fitted on these patches keeps of its model."""
    values = {
        "name": backbone.name,
        "weights": backbone.weights,
        "weights_sha256": weights_digest(backbone),
        "seed": 0 if backbone.weights == "random" else None,
        "transform": transform_of(backbone, source, EmbeddingOptions()),
        "patch_size_px": PATCH_PX,
        "resolution_um_per_px": 0.5,
    }
    return EncoderRecord(**{**values, **changes})


def fitted_predictor(
    folder: Path, *, backbone: Backbone | None = None, seed: int = 0, **changes: Any
) -> ExpressionPredictor:
    """Fits genes of a slide of its own; NOISE follows nothing, the others the features.

    Args:
        folder: Where that slide is written.
        backbone: Whose features; a tiny model with random weights by default.
        seed: Of the genes.
        **changes: Other values of the record of the model.
    """
    slide = folder / f"training_{seed}.tif"
    write_slide(slide, size=(1024, 1024), tissue=(0, 0, 1024, 1024))
    source = SlideSource(slide, TilingOptions(patch_size_px=PATCH_PX))
    backbone = backbone or load_backbone("test_vit12")
    features = features_of(backbone, source)
    rng = np.random.default_rng(seed)
    standard = (features - features.mean(0)) / features.std(0)
    y = standard @ rng.normal(size=(features.shape[1], len(GENES))) / 20 + 2
    y += rng.normal(size=y.shape) * np.array([2.0, 0.05, 0.1, 0.1])
    y[:, -1] = rng.normal(size=len(y))
    study = np.arange(len(y)) % 4
    predictor = ExpressionPredictor(alpha=1.0, num_components=8, num_resamples=200)
    return predictor.fit(
        features, y, studies=study, genes=GENES, encoder=encoder_record(backbone, source, **changes)
    )


@torch.inference_mode()
def features_of(backbone: Backbone, source: SlideSource) -> np.ndarray:
    """Embeds patches one by one, by the definition."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=backbone.model)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = np.stack([np.asarray(source[index]) for index in range(len(source))])
    found = [
        pooled_features(backbone.model, ((torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std)[None], "model")
        for image in images
    ]
    return torch.cat(found).numpy()
