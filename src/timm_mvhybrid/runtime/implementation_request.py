"""Which implementations of the scans can be requested, and by which environment variable; needs no torch."""

from __future__ import annotations

import os

from .errors import TimmMVHybridError

IMPLEMENTATIONS = ("auto", "reference", "cpu", "numba", "triton", "mamba_ssm")
ENVIRONMENT_VARIABLE = "TIMM_MVHYBRID_IMPLEMENTATION"


class ImplementationError(TimmMVHybridError, RuntimeError):
    """The requested implementation cannot run here; the message says why and what to do."""


def requested_by_environment() -> str:
    """Returns what the environment variable asks for, whether it names an implementation or not; else ``auto``."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "auto")


def misnamed(name: str, what: str) -> str:
    """Says what is wrong with a name.

    Returns:
        Half a sentence; "" if there is an implementation of this name.
    """
    if name in IMPLEMENTATIONS:
        return ""
    return f"{what} is {name!r}; expected one of {', '.join(IMPLEMENTATIONS)}"


def check_request(name: str) -> None:
    """Checks that a name is that of an implementation; whether it can run depends on the scan's input.

    Raises:
        ImplementationError: There is no implementation of this name.
    """
    if problem := misnamed(name, f"environment variable {ENVIRONMENT_VARIABLE}"):
        raise ImplementationError(problem)
