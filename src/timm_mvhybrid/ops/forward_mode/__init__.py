"""Derivatives of a whole model along many directions, in forward mode: model, input, directions → how its output moves."""

from . import rules as _rules  # noqa: F401  (what rules there are)
from .dual import Dual, ForwardModeError, call, derivatives, rule

__all__ = ["Dual", "ForwardModeError", "call", "derivatives", "rule"]
