"""The backbones: names → timm models, and checkpoints → state dicts that fit them."""

from .checkpoint import CheckpointError, checkpoint_filter_fn
from .hybrid_vision_transformer import HybridVisionTransformer
from .loading import load_weights
from .mvhybrid import HE_MEAN, HE_STD, MODEL_NAMES, TEST_MODEL_NAMES

__all__ = [
    "HE_MEAN",
    "HE_STD",
    "MODEL_NAMES",
    "TEST_MODEL_NAMES",
    "CheckpointError",
    "HybridVisionTransformer",
    "checkpoint_filter_fn",
    "load_weights",
]
