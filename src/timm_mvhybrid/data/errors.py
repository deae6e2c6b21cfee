"""What can be wrong with data: file, value → one line that names both and the remedy."""

from ..runtime.errors import TimmMVHybridError


class DataError(TimmMVHybridError, ValueError):
    """The input as a whole cannot be used; the message is one line for the user."""


class PatchError(DataError):
    """One patch of an otherwise usable input cannot be read."""


class NotASlideError(DataError):
    """No slide library can open the file."""
