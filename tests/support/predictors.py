"""Predictors for tests: fitted on features of a tiny model with random weights, by which a slide can be predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from support.generated_slides import write_slide

from timm_mvhybrid.data import SlideSource, TilingOptions
from timm_mvhybrid.embed.backbone import Backbone, load_backbone
from timm_mvhybrid.embed.embedding_cache import EmbeddingOptions, transform_of, weights_digest
from timm_mvhybrid.embed.embedding_store import read_embeddings
from timm_mvhybrid.embed.embeddings import embed
from timm_mvhybrid.predict import EncoderRecord, ExpressionPredictor
from timm_mvhybrid.predict.slide_prediction import SlidePrediction, predict_batches

PATCH_PX = 64
GENES = ("WEAK", "ERBB2", "ACTB", "NOISE")
MODEL = "test_vit12"


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
    """Fits genes on the patches of a slide of its own, 0.5 µm/px and 64 px; NOISE follows nothing.

    Args:
        folder: Where that slide is written.
        backbone: Whose features; a tiny model with random weights by default.
        seed: Of the genes.
        **changes: Other values of the record of the model.
    """
    slide, features = folder / f"training_{seed}.tif", folder / f"training_{seed}.h5"
    write_slide(slide, size=(640, 640), tissue=(0, 0, 640, 640))
    source = SlideSource(slide, TilingOptions(patch_size_px=PATCH_PX))
    backbone = backbone or load_backbone(MODEL)
    embed(source, backbone, features, device="cpu")
    record = encoder_record(backbone, source, **changes)
    return fit(read_embeddings(features).embeddings, seed=seed, encoder=record)


def fit(
    features: np.ndarray,
    *,
    seed: int = 0,
    encoder: EncoderRecord | None = None,
    genes: tuple[str, ...] = GENES,
) -> ExpressionPredictor:
    """Fits genes that follow the features, each with its own noise; the last one follows nothing."""
    rng = np.random.default_rng(seed)
    standard = (features - features.mean(0)) / features.std(0)
    y = standard @ rng.normal(size=(features.shape[1], len(genes))) / np.sqrt(features.shape[1]) + 2
    y += rng.normal(size=y.shape) * np.linspace(1.5, 0.1, len(genes))
    y[:, -1] = rng.normal(size=len(y))
    predictor = ExpressionPredictor(alpha=1.0, num_components=8, num_resamples=200)
    return predictor.fit(features, y, studies=np.arange(len(y)) % 4, genes=genes, encoder=encoder)


def slide_prediction(*, side: int = 6, stride: int = 32, genes: tuple[str, ...] = GENES) -> SlidePrediction:
    """Predictions on a square of patches of 64 px whose features were drawn; those of the first row are far."""
    rng = np.random.default_rng(1)
    encoder = EncoderRecord(
        name=MODEL,
        weights="random",
        weights_sha256="0" * 64,
        seed=0,
        patch_size_px=64,
        resolution_um_per_px=0.5,
    )
    predictor = fit(rng.normal(size=(120, 16)).astype(np.float32), encoder=encoder, genes=genes)
    features = 0.3 * rng.normal(size=(side * side, 16)).astype(np.float32)
    features[:side] += 50
    coords = np.array([(stride * x + 8, stride * y + 16) for y in range(side) for x in range(side)])
    size = (stride * side + 60, stride * side + 90)
    return SlidePrediction(
        name="a slide",
        coords=coords,
        patch_size_level0=64.0,
        stride_level0=float(stride),
        dimensions_px=size,
        um_per_px=0.5,
        picture=rng.integers(180, 255, (size[1] // 2, size[0] // 2, 3), dtype=np.uint8),
        predictor=predictor,
        prediction=predict_batches(predictor, [features[:10], features[10:]], len(features)),
        record={"slide": "a slide.svs", "options": {"level": None}},
    )
