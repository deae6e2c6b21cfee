"""What a task reports on its way from embeddings to scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """Where scoring stands.

    Attributes:
        stage: What is scored: a protocol, probes, attention or survival.
        model: The model's label, and the probe where there are several.
        num_done: Units of the stage that are done: folds, or models where all folds are scored at once.
        num_total: Units of the stage, over all models.
    """

    stage: str
    model: str
    num_done: int
    num_total: int


OnStage = Callable[[StageReport], None] | None


def stage_reporter(stage: str, num_total: int, on_stage: OnStage) -> Callable[[str], None]:
    """Counts the units of a stage.

    Returns:
        A function to call with the model's label after each unit.
    """
    num_done = 0

    def report(model: str) -> None:
        nonlocal num_done
        num_done += 1
        if on_stage is not None:
            on_stage(StageReport(stage=stage, model=model, num_done=num_done, num_total=num_total))

    return report
