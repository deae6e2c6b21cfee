"""What a study cannot do."""

from __future__ import annotations

from ..runtime.errors import TimmMVHybridError


class StudyError(TimmMVHybridError, ValueError):
    """A study's file, one of its cells, or what cells left is not as it must be; the message names file, key and remedy."""
