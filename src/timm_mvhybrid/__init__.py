"""State-space and vision-transformer hybrid backbones for computational pathology, as a timm plug-in.

Importing the package registers its models: ``timm.create_model("mvhybrid_small_patch16_256")`` works from then on, and so
does ``create_model``.
"""

import os

from .runtime.garbage import collection_paused
from .runtime.reads_only import READS_ONLY
from .version import __version__

if os.environ.get(READS_ONLY) is None:
    with collection_paused():
        from . import layers, models, ops
        from .models import create_model

__all__ = ["__version__", "create_model", "layers", "models", "ops"]
