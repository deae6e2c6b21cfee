"""The backbones: names → timm models, and checkpoints → state dicts that fit them."""

from .checkpoint import CheckpointError, checkpoint_filter_fn
from .hub_download import HubError, NotPublishedError
from .hybrid_vision_transformer import HybridVisionTransformer
from .loading import load_weights
from .mvhybrid import HE_MEAN, HE_STD, MODEL_NAMES, PUBLISHED_SETS, TEST_MODEL_NAMES
from .timm_factory import install

install()

__all__ = [
    "HE_MEAN",
    "HE_STD",
    "MODEL_NAMES",
    "PUBLISHED_SETS",
    "TEST_MODEL_NAMES",
    "CheckpointError",
    "HubError",
    "HybridVisionTransformer",
    "NotPublishedError",
    "checkpoint_filter_fn",
    "load_weights",
]
