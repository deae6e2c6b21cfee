"""Optional packages: name → module, or one line that says how to install it."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingPackageError


def require(module: str, extra: str = "evaluate") -> Any:
    """Imports a module of an extra where it is needed.

    Args:
        module: Its dotted name.
        extra: The extra of this package that brings it.

    Raises:
        MissingPackageError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        # an installed package that lacks one of its own dependencies is another problem, with another name
        name = missing.name or module
        raise MissingPackageError(
            f"{name} is not installed; pip install 'timm-mvhybrid[{extra}]'"
        ) from missing
