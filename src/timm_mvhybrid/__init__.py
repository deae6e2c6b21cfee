"""State-space and vision-transformer hybrid backbones for computational pathology, as a timm plug-in.

Importing the package registers its models: ``timm.create_model("mvhybrid_small_patch16_256")`` works from then on, and so
does ``create_model``.
"""

from . import layers, models, ops
from .models import create_model
from .version import __version__

__all__ = ["__version__", "create_model", "layers", "models", "ops"]
