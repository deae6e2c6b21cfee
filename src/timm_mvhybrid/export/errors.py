"""What can go wrong between a checkpoint and the Hub: cause → one line that names it and the remedy."""

from ..models import CheckpointError


class ExportError(CheckpointError):
    """A checkpoint, a folder or a repository cannot do what was asked; the message is one line for the user."""
