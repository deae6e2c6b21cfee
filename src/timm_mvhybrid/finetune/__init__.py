"""Fine-tuning: an encoder and measured expression → the encoder, taught molecular state without losing morphology."""

from .adapters import TARGETS, load_adapters, lora, merge, save_adapters
from .errors import FinetuneError
from .expression_model import ExpressionModel, load
from .losses import info_nce, masked_mse
from .st_model import STModel

__all__ = [
    "TARGETS",
    "ExpressionModel",
    "FinetuneError",
    "STModel",
    "info_nce",
    "load",
    "load_adapters",
    "lora",
    "masked_mse",
    "merge",
    "save_adapters",
]
