"""From a trained checkpoint to the Hub, under the name of the place that they go to; all of it lives in `export`."""

from .export import *  # noqa: F403 - the same names
from .export import __all__ as __all__
