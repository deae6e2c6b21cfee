"""The error of everything to do with weights."""

from __future__ import annotations

from ..runtime.errors import TimmMVHybridError, printable


class CheckpointError(TimmMVHybridError, RuntimeError):
    """A checkpoint that cannot be read or does not fit the model.

    Its message may quote names in the file; they are made printable here, once for every place that raises it.

    Args:
        *values: The message.
    """

    def __init__(self, *values: object) -> None:
        super().__init__(*(printable(value) if isinstance(value, str) else value for value in values))
