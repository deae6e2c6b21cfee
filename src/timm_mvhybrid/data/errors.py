"""What can be wrong with data: file, value → one line that names both and the remedy."""

from __future__ import annotations

from ..runtime.errors import TimmMVHybridError


class DataError(TimmMVHybridError, ValueError):
    """The input as a whole cannot be used; the message is one line for the user."""


class PatchError(DataError):
    """One patch of an otherwise usable input cannot be read."""


class NotASlideError(DataError):
    """No slide library can open the file."""


class SlideChoiceError(DataError):
    """The slide of a coordinate file is not found, or not the right one.

    Args:
        cause: What is wrong; the remedy of the command `embed` is added.

    Attributes:
        cause: The same, for those who take the slide in another way.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"{cause}; give the slide with --slide FILE")
        self.cause = cause

    def __reduce__(self) -> tuple[type[SlideChoiceError], tuple[str]]:
        """Keeps the cause in pickles, which workers' errors travel as."""
        return type(self), (self.cause,)
