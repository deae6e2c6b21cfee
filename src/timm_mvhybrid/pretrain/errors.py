"""What can be wrong with a pretraining run: cause → one line that names the value and the remedy."""


class PretrainError(ValueError):
    """The run cannot start or go on; the message is one line for the user."""
