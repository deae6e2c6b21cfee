"""The tidy table of scores ↔ columns of results.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..runtime.errors import EvaluationError


class Score(NamedTuple):
    """One row of the table of scores.

    Attributes:
        model: Label of the model.
        protocol: How train and test parts were made, or the probe, such as ``loso`` or ``knn``.
        fold: Name of the fold.
        unit: What was scored within the fold, such as a gene or a slide; empty for the fold as a whole.
        metric: Name of the metric, such as ``pcc``.
        value: The score; NaN where there is none.
    """

    model: str
    protocol: str
    fold: str
    unit: str
    metric: str
    value: float


def to_columns(scores: Sequence[Score]) -> dict[str, Any]:
    """Encodes the table by columns, names once."""
    columns: dict[str, Any] = {}
    for position, name in enumerate(Score._fields[:-1]):
        names: dict[str, int] = {}
        codes = [names.setdefault(str(row[position]), len(names)) for row in scores]
        columns[name] = {"names": list(names), "codes": codes}
    columns["value"] = [row.value for row in scores]
    return columns


def from_columns(columns: Any, where: str) -> tuple[Score, ...]:
    """Decodes what ``to_columns`` gave, from the file ``where``.

    Raises:
        EvaluationError: It is damaged.
    """
    try:
        texts: list[Iterable[str]] = [
            [str(columns[name]["names"][code]) for code in columns[name]["codes"]]
            for name in Score._fields[:-1]
        ]
        values = [float("nan") if value is None else float(value) for value in columns["value"]]
        return tuple(Score(*row) for row in zip(*texts, values, strict=True))
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise EvaluationError(f"{where}: its table of scores is damaged ({error}); evaluate again") from error
