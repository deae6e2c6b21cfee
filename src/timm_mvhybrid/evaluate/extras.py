"""Optional packages: name → module, or one line that says how to install it."""

from __future__ import annotations

import importlib
from typing import Any

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
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # a package that is there but lacks one of its own dependencies is another problem, with another name
        missing = error.name or module
        raise EvaluationError(f"{missing} is not installed; pip install 'timm-mvhybrid[evaluate]'") from error
