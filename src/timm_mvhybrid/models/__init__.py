"""The backbones: names → timm models, checkpoints → state dicts that fit them, models → ONNX files."""

from ..weights.checkpoint import checkpoint_filter_fn
from ..weights.errors import CheckpointError
from ..weights.hub_download import HubError, NotPublishedError
from .creation import create_model
from .hybrid_vision_transformer import HybridVisionTransformer
from .loading import load_weights
from .mvhybrid import (
    ALL_MODEL_NAMES,
    HE_MEAN,
    HE_STD,
    MODEL_NAMES,
    PUBLISHED_SETS,
    TEST_MODEL_NAMES,
    TINY_MODEL_NAMES,
)
from .onnx_export import OnnxExport, OnnxExportError, export_onnx

__all__ = [
    "ALL_MODEL_NAMES",
    "HE_MEAN",
    "HE_STD",
    "MODEL_NAMES",
    "PUBLISHED_SETS",
    "TEST_MODEL_NAMES",
    "TINY_MODEL_NAMES",
    "CheckpointError",
    "HubError",
    "HybridVisionTransformer",
    "NotPublishedError",
    "OnnxExport",
    "OnnxExportError",
    "checkpoint_filter_fn",
    "create_model",
    "export_onnx",
    "load_weights",
]
