"""What fine-tuning cannot do."""

from ..runtime.errors import TimmMVHybridError


class FinetuneError(TimmMVHybridError, ValueError):
    """A model cannot be fine-tuned this way, or a parameter has a value that is not allowed."""
