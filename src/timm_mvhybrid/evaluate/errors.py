"""What can go wrong while evaluating: cause → one line that names it and the remedy."""


class EvaluationError(RuntimeError):
    """A model, an output or a device cannot do what was asked; the message is one line for the user."""
