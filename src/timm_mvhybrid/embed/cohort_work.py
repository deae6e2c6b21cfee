"""What each process of a run does with the slides of a cohort, whichever engine started it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..runtime.ranks import Ranks
from .backbone import Backbone
from .cohort_folder import CohortFolder
from .cohort_plan import CohortSettings, PlannedSlide
from .embeddings import ForwardOptions
from .engine_calls import EngineCalls
from .local_engine import LocalEngine
from .patch_readers import PatchReaders
from .slide_cohort import RecordLog
from .source_embedding import PlacedModel


@dataclass(frozen=True, kw_only=True)
class CohortWork:
    """Model, settings and folder of a run; it can be sent to other processes.

    Attributes:
        backbone: The model.
        folder: Of the cohort.
        settings: What features depend on.
        forward: How patches go through the model.
        num_readers: Processes that read patches, of each process of the run.
        reader_timeout_s: As in ``CohortOptions``.
        max_reads: As in ``CohortOptions``.
        skip_corrupt: Leave unreadable patches out instead of failing their slide.
    """

    backbone: Backbone
    folder: Path
    settings: CohortSettings
    forward: ForwardOptions
    num_readers: int
    reader_timeout_s: float
    max_reads: int
    skip_corrupt: bool = False

    def models(self, ranks: Ranks) -> list[PlacedModel]:
        """Puts a copy of the model on each device of a process.

        Raises:
            EvaluationError: A device cannot be used, or the model does not support the pooling.
        """
        names = [ranks.own_device(self.forward.device)]
        if (
            ranks.world_size == 1
            and self.forward.device in ("auto", "cuda")
            and torch.cuda.device_count() > 1
        ):
            names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        return [
            PlacedModel(
                self.backbone
                if index == 0
                else replace(self.backbone, model=copy.deepcopy(self.backbone.model)),
                device=name,
                pool=self.forward.pool,
                dtype=self.forward.dtype,
                input_size=self.forward.input_size,
            )
            for index, name in enumerate(names)
        ]

    def run(
        self,
        models: Sequence[PlacedModel],
        planned: Sequence[PlannedSlide],
        num_own: int,
        calls: EngineCalls,
        on_warning: Callable[[str], None],
    ) -> tuple[bool, float]:
        """Embeds the slides that no other process is at.

        Args:
            models: What ``models`` gives.
            planned: The slides, in the order in which they are begun.
            num_own: How many of them, from the first, are meant for this process.
            calls: Whom to tell, and whom to ask whether to stop.
            on_warning: Called with a sentence for each reader that was lost.

        Returns:
            Whether it was told to stop, and how many seconds its devices waited for patches.

        Raises:
            EvaluationError: A batch does not fit into memory.
            OutputError: The disk does not take a file.
        """
        readers = PatchReaders(
            self.num_readers,
            timeout_s=self.reader_timeout_s,
            max_attempts=self.max_reads,
            on_warning=on_warning,
        )
        engine = LocalEngine(
            models,
            readers,
            CohortFolder(self.folder, RecordLog(self.folder)),
            self.settings,
            batch_size=self.forward.batch_size,
            skip_corrupt=self.skip_corrupt,
            calls=calls,
        )
        stopped = not engine.run(planned, num_own)
        return stopped, engine.seconds_waited


def own_first(planned: Sequence[PlannedSlide], ranks: Ranks) -> tuple[list[PlannedSlide], int]:
    """Orders slides: those dealt to a process, and how many; then those of others, which it helps with in the end."""
    mine = ranks.share([one.num_bytes for one in planned])
    own = set(mine)
    # from the end, where the others have not been yet
    others = [planned[index] for index in reversed(range(len(planned))) if index not in own]
    return [planned[index] for index in mine] + others, len(mine)
