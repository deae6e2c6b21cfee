"""What can be wrong with a pretraining run: cause → one line that names the value and the remedy."""

from ..runtime.errors import TimmMVHybridError


class PretrainError(TimmMVHybridError, ValueError):
    """The run cannot start or go on; the message is one line for the user."""
