"""Figures and bounds → verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .measure import Spread


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on a figure.

    Attributes:
        figure: Name of the figure.
        relation: Whether the figure's median shall be at least or at most the bound.
        bound: In the unit of the figure.
    """

    figure: str
    relation: Literal["≥", "≤"]
    bound: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a goal.

    Attributes:
        goal: The goal.
        measured: The figure's median; None if it was not measured.
    """

    goal: Goal
    measured: float | None

    @property
    def word(self) -> Literal["held", "missed", "not judged"]:
        """Says whether the goal is held."""
        if self.measured is None:
            return "not judged"
        if self.goal.relation == "≥":
            return "held" if self.measured >= self.goal.bound else "missed"
        return "held" if self.measured <= self.goal.bound else "missed"


def judge(goals: Sequence[Goal], figures: Mapping[str, Spread]) -> list[Verdict]:
    """Compares figures with goals; a goal whose figure is absent, or not a number, is not judged.

    Args:
        goals: The bounds.
        figures: By name.

    Returns:
        One verdict a goal, in order.
    """
    verdicts = []
    for goal in goals:
        measured = figures[goal.figure].median if goal.figure in figures else None
        verdicts.append(
            Verdict(goal=goal, measured=measured if measured is not None and measured == measured else None)
        )
    return verdicts
