"""Which implementation of the scans may be asked for, and by which environment variable; needs no torch."""

from __future__ import annotations

import os

from .errors import TimmMVHybridError

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "mamba_ssm")
ENVIRONMENT_VARIABLE = "TIMM_MVHYBRID_IMPLEMENTATION"


class ImplementationError(TimmMVHybridError, RuntimeError):
    """The implementation that was asked for cannot run here; the message says why and what to do."""


def requested_by_environment() -> str:
    """Returns what the environment variable asks for, whether it names an implementation or not; else ``auto``."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "auto")


def misnamed(name: str, what: str) -> str:
    """Says what is wrong with a name.

    Args:
        name: Of an implementation, or not.
        what: What holds it.

    Returns:
        Half a sentence; "" where there is an implementation of this name.
    """
    if name in IMPLEMENTATIONS:
        return ""
    return f"{what} is {name!r}; expected one of {', '.join(IMPLEMENTATIONS)}"


def check_request(name: str) -> None:
    """Finds out whether a request of the environment is one, before work starts.

    Args:
        name: What it asks for; whether that can be met depends on the scan's input.

    Raises:
        ImplementationError: It is the name of no implementation.
    """
    if problem := misnamed(name, f"environment variable {ENVIRONMENT_VARIABLE}"):
        raise ImplementationError(problem)
