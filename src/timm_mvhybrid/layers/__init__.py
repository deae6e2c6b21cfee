"""Mixers and the block that joins them: tokens (batch, length, d_model) → tokens of the same shape."""

from .block import SSMBlock
from .einfft import EinFFT
from .hydra import HydraMixer
from .mambavision import MambaVisionMixer
from .vim import VimMixer

__all__ = ["EinFFT", "HydraMixer", "MambaVisionMixer", "SSMBlock", "VimMixer"]
