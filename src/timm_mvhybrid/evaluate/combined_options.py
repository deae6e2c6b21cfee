"""Options of two tasks at once, for those who run both on the same data."""

from __future__ import annotations

from dataclasses import dataclass

from .classification import ClassificationOptions
from .retrieval import RetrievalOptions
from .slides import SlidesOptions
from .survival import SurvivalOptions


@dataclass(frozen=True, kw_only=True)
class PatchTaskOptions(ClassificationOptions, RetrievalOptions):
    """Classification and retrieval of labelled patches."""


@dataclass(frozen=True, kw_only=True)
class SlideTaskOptions(SlidesOptions, SurvivalOptions):
    """Slide classification and survival."""
