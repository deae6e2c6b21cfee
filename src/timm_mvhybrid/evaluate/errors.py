"""What can go wrong while evaluating: cause → one line that names it and the remedy."""

from ..runtime.errors import TimmMVHybridError


class EvaluationError(TimmMVHybridError, RuntimeError):
    """A model, an output or a device cannot do what was asked; the message is one line for the user."""
