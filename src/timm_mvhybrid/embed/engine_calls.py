"""What an engine tells of a cohort's slides while it runs, and whom it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .slide_cohort import SlideRecord


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """Where the slides of this process stand.

    Attributes:
        tiles_done: Tiles embedded, unreadable ones included.
        tiles_known: Tiles of all slides that were opened.
        slides_opened: Slides that were opened, or found to need no work.
        slides_left: Slides that are not opened yet.
        seconds: Since the start.
        errors: A line for each tile that was left out in this batch.
    """

    tiles_done: int
    tiles_known: int
    slides_opened: int
    slides_left: int
    seconds: float
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EngineCalls:
    """Whom the engine tells, and whom it asks.

    Attributes:
        on_slide: Called with the record of each slide that ended here; raising ends the run.
        on_batch: Called after each batch.
        stopping: Asked again and again whether to stop.
    """

    on_slide: Callable[[SlideRecord], None] = lambda record: None
    on_batch: Callable[[EngineReport], None] = lambda report: None
    stopping: Callable[[], bool] = lambda: False
