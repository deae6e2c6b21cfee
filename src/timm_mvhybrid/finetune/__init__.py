"""Fine-tuning: an encoder and measured expression → the encoder, taught molecular state without losing morphology."""

from .errors import FinetuneError
from .losses import info_nce, masked_mse
from .st_model import STModel

__all__ = ["FinetuneError", "STModel", "info_nce", "masked_mse"]
