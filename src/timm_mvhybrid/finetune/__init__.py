"""Fine-tuning: an encoder and measured expression → the encoder, taught molecular state without losing morphology."""

from .errors import FinetuneError
from .st_model import STModel

__all__ = ["FinetuneError", "STModel"]
