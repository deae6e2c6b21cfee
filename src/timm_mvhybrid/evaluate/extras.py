"""Optional packages of evaluation: name → module, or one line that says how to install it."""

from __future__ import annotations

from typing import Any

from ..data import extras
from .errors import EvaluationError


def require(module: str) -> Any:
    """Imports a module of the `evaluate` extra where it is needed.

    Args:
        module: Its dotted name, such as `sklearn.decomposition`.

    Returns:
        The module.

    Raises:
        EvaluationError: If the package is not installed.
    """
    return extras.require(module, EvaluationError)
