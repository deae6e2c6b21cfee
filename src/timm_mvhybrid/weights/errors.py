"""The error of everything that has to do with weights."""

from __future__ import annotations

from ..runtime.errors import TimmMVHybridError
from ..runtime.printable import printable


class CheckpointError(TimmMVHybridError, RuntimeError):
    """A checkpoint that cannot be read or does not fit the model.

    Its message may quote names out of the file; they are made printable here, once for all who raise it.

    Args:
        *values: The message.
    """

    def __init__(self, *values: object) -> None:
        super().__init__(*(printable(value) if isinstance(value, str) else value for value in values))
