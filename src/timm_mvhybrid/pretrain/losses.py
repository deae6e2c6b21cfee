"""The objective of DINOv2, where users of the recipe look for it; it lives in ``ssl``."""

from ..ssl.losses import DINOv2Loss

__all__ = ["DINOv2Loss"]
