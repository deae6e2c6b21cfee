"""Backbones → labels that are unique within a result."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..runtime.errors import EvaluationError
from .backbone import Backbone


def unique_labels(backbones: Sequence[Backbone], taken: Collection[str] = ()) -> dict[str, Backbone]:
    """Labels models by name, and by their weights' file where a name occurs more than once.

    Raises:
        EvaluationError: If two models would have the same label.
    """
    names = [backbone.name for backbone in backbones]
    labels: dict[str, Backbone] = {}
    for backbone in backbones:
        label = backbone.name
        if names.count(label) > 1:
            label = f"{label} ({backbone.weights})"
        if label in labels or label in taken:
            raise EvaluationError(
                f"model '{label}' is given twice; give different files as `checkpoint`, or different names"
            )
        labels[label] = backbone
    return labels
