"""The baseline that knows only where spots lie: a stand-in among the models → features of coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...data import PatchSource
from ...embed.backbone import Backbone
from ...embed.baselines import POSITION, position_features
from ...runtime.errors import EvaluationError
from ...runtime.provenance import ModelRecord


@dataclass(frozen=True, eq=False, kw_only=True)
class PlacedModels:
    """Models of which ``baseline:position``, if it is among them, needs no embedding any more.

    Attributes:
        backbones: The others.
        embeddings: Given embeddings, model's label → sample → (spots, D), those of the positions last.
        index: Where the positions stand among all models; None without them.
        notes: Says that they were left out, and why, if they were.
    """

    backbones: list[Backbone]
    embeddings: dict[str, Mapping[str, NDArray[np.float32]]]
    index: int | None = None
    notes: list[str] = field(default_factory=list)

    def in_order(self, models: Sequence[ModelRecord]) -> list[ModelRecord]:
        """Puts the positions, which come after the given embeddings, where they were named."""
        ordered = list(models)
        if self.index is not None:
            ordered.insert(self.index, ordered.pop(len(self.embeddings) - 1))
        return ordered


def place_positions(
    backbones: Sequence[Backbone],
    embeddings: Mapping[str, Mapping[str, NDArray[np.float32]]],
    sources: Mapping[str, PatchSource],
) -> PlacedModels:
    """Computes the features of ``baseline:position``.

    Where patches have no coordinates, it is left out, unless nothing else is evaluated.

    Args:
        backbones: The models.
        embeddings: Those that are given, model's label → sample → (spots, D).
        sources: Sample → patches.

    Raises:
        EvaluationError: It is the only model, and a sample has no coordinates.
    """
    index = next((index for index, one in enumerate(backbones) if one.name == POSITION), None)
    others, given = [one for one in backbones if one.name != POSITION], dict(embeddings)
    if index is None:
        return PlacedModels(backbones=others, embeddings=given)
    coords = {name: source.coords for name, source in sources.items() if source.coords is not None}
    missing = [name for name in sources if name not in coords]
    if not missing:
        given[POSITION] = position_features(coords)
        return PlacedModels(backbones=others, embeddings=given, index=len(embeddings) + index)
    note = f"{POSITION} is left out, because the patches of '{missing[0]}' have no coordinates."
    if not others and not given:
        raise EvaluationError(note[:-1])
    return PlacedModels(backbones=others, embeddings=given, notes=[note])
