"""Slides + model → a folder with one file a slide, and ``cohort.jsonl``; alone, or as one of several processes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import arg

from ..data import Edge, SlideInput, TilingOptions
from ..runtime.atomic_file import make_folder
from ..runtime.cores import num_loader_workers, num_usable_cores
from ..runtime.errors import EvaluationError, ParameterError
from ..runtime.ranks import Ranks
from .backbone import Backbone
from .cohort_folder import CohortFolder
from .cohort_plan import CohortSettings, PlannedSlide, check_folder, plan_slides
from .embeddings import ForwardOptions
from .engine_calls import EngineCalls
from .local_engine import LocalEngine
from .patch_readers import PatchReaders
from .slide_cohort import RecordLog, SlideRecord
from .source_embedding import PlacedModel


@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """How many slides are embedded into a folder.

    Attributes:
        max_failed: Slides that may fail before the run is given up; none gives up, by default.
        reader_timeout_s: Seconds that a process which reads may take for one patch, or for opening a slide, before it counts as
            stalled, is named, killed and replaced.
        max_reads: How often patches are tried to be read by processes that stall or die, before their slide fails.
    """

    max_failed: Annotated[int | None, arg(metavar="N")] = None
    reader_timeout_s: Annotated[float, arg(name="reader-timeout", metavar="SECONDS")] = 300.0
    max_reads: Annotated[int, arg(metavar="N")] = 3

    def __post_init__(self) -> None:
        if self.max_failed is not None and self.max_failed < 0:
            raise ParameterError(f"`max_failed` must be at least 0, not {self.max_failed}")
        if not 0 < self.reader_timeout_s < float("inf"):
            raise ParameterError(
                f"`reader_timeout_s` must be finite and above 0, not {self.reader_timeout_s}"
            )
        if self.max_reads < 1:
            raise ParameterError(f"`max_reads` must be at least 1, not {self.max_reads}")


@dataclass(frozen=True, kw_only=True)
class CohortSummary:
    """How the slides of a cohort stand at the end of a run.

    Attributes:
        output: The folder.
        num_slides: Slides that were given.
        num_embedded: Those embedded by this run, of all its processes.
        num_kept: Those that were done, or known to be empty, before.
        num_left: Those not tried: other processes are at them, or the run was stopped.
        empty: Records of those without tissue.
        failed: Records of those that failed.
        num_patches: Tiles of the slides embedded by this run.
        seconds: Time of the run, loading of the model excluded.
        data_wait_share: Fraction of the time (0 to 1) that this process's devices spent waiting for patches.
        stopped: Whether the run was told to stop before all slides were tried.
    """

    output: str
    num_slides: int
    num_embedded: int
    num_kept: int
    num_left: int
    empty: tuple[SlideRecord, ...]
    failed: tuple[SlideRecord, ...]
    num_patches: int
    seconds: float
    data_wait_share: float
    stopped: bool


def embed_slides(
    slides: Sequence[SlideInput],
    backbone: Backbone,
    output: str | Path,
    *,
    tiling: TilingOptions | None = None,
    place: str | Path | None = None,
    edge: Edge = "auto",
    forward: ForwardOptions | None = None,
    options: CohortOptions | None = None,
    skip_corrupt: bool = False,
    overwrite: bool = False,
    calls: EngineCalls | None = None,
    on_warning: Callable[[str], None] = lambda sentence: None,
) -> CohortSummary:
    """Embeds slides into a folder, ``<slide_id>.h5`` each, whole or absent, as ``embed`` writes it.

    ``cohort.jsonl`` in the folder says how each slide ended. Started again, it embeds what is missing, failed or changed
    (weights, transform, tiling, resolution, the slide's content), and nothing else. A slide that fails is recorded and
    passed over. Several processes may fill one folder: those that torchrun started share the slides, and any others leave
    alone what one of them is at.

    Args:
        slides: What ``list_slides`` gives.
        backbone: Any timm model and what its weights are.
        output: The folder; made if absent.
        tiling: How slides are cut.
        place: Of coordinate h5 files that are given alone: their slide, or the folder of slides; None looks beside them.
        edge: How patches of coordinate files beyond a slide's edge are filled, see ``open_source``.
        forward: How patches go through the model; ``auto`` and ``cuda`` take all CUDA devices.
        options: How the run behaves.
        skip_corrupt: Leave unreadable patches out instead of failing their slide.
        overwrite: Embed all slides anew, and replace files of these names that this did not write.
        calls: Whom to tell of slides and batches of this process, and whom to ask whether to stop.
        on_warning: Called with a sentence for what does not fail a slide, such as a reader that was lost.

    Returns:
        How the slides stand; look at ``failed``.

    Raises:
        DataError: ``cohort.jsonl`` is of something else.
        EvaluationError: The model or a device cannot do what is asked, a file would replace something else's, or more slides
            failed than may.
        OutputError: The folder or a file cannot be written.
        ParameterError: A value is out of its range.
    """
    start = time.perf_counter()
    forward, options, calls = forward or ForwardOptions(), options or CohortOptions(), calls or EngineCalls()
    num_workers = forward.arguments()["num_workers"]
    if forward.batch_size < 1 or num_workers < 0:
        raise ParameterError(
            f"`batch_size` must be at least 1 and `num_workers` at least 0, not {forward.batch_size} and {num_workers}"
        )
    with Ranks.from_environment().joined() as ranks:
        models = _placed(backbone, forward, ranks)
        settings = CohortSettings.of(
            backbone,
            forward,
            tiling or TilingOptions(),
            place=None if place is None else Path(place),
            edge=edge,
        )
        folder = Path(output)

        def plan() -> list[PlannedSlide]:
            found = plan_slides(slides, folder, settings, RecordLog(folder).records, overwrite=overwrite)
            make_folder(folder)
            check_folder(folder)
            return found

        planned = ranks.on_first(plan)
        log = RecordLog(folder)
        waited, stopped = 0.0, False
        if planned:
            readers = PatchReaders(
                _num_readers(num_workers, ranks),
                timeout_s=options.reader_timeout_s,
                max_attempts=options.max_reads,
                on_warning=on_warning,
            )
            engine = LocalEngine(
                models,
                readers,
                CohortFolder(folder, log),
                settings,
                batch_size=forward.batch_size,
                skip_corrupt=skip_corrupt,
                calls=replace(calls, on_slide=_counting(planned, log, options, calls)),
            )
            stopped = not engine.run(_own_first(planned, ranks))
            waited = engine.seconds_waited
        stopped = any(ranks.gather(stopped))
        seconds = time.perf_counter() - start
        return _summary(slides, planned, log.refresh(), folder, seconds, waited, stopped)


def _placed(backbone: Backbone, forward: ForwardOptions, ranks: Ranks) -> list[PlacedModel]:
    """Puts a copy of the model on each device."""
    names = [ranks.own_device(forward.device)]
    if ranks.world_size == 1 and forward.device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [
        PlacedModel(
            backbone if index == 0 else replace(backbone, model=copy.deepcopy(backbone.model)),
            device=name,
            pool=forward.pool,
            dtype=forward.dtype,
            input_size=forward.input_size,
        )
        for index, name in enumerate(names)
    ]


def _num_readers(wanted: int, ranks: Ranks) -> int:
    """Shares the cores among the processes of this machine."""
    return num_loader_workers(min(wanted, max(num_usable_cores() // ranks.local_world_size, 1)), wanted)


def _own_first(planned: Sequence[PlannedSlide], ranks: Ranks) -> list[PlannedSlide]:
    """Orders slides: those dealt to this process, then those of the others, of which it takes what they have not begun."""
    if ranks.world_size == 1:
        return list(planned)
    mine = ranks.share([one.num_bytes for one in planned])
    own = set(mine)
    # from the end, where the others have not been yet
    return [planned[i] for i in mine] + [planned[i] for i in reversed(range(len(planned))) if i not in own]


def _counting(
    planned: Sequence[PlannedSlide], log: RecordLog, options: CohortOptions, calls: EngineCalls
) -> Callable[[SlideRecord], None]:
    """Ends the run once too many slides have failed in it, in whichever of its processes."""

    def on_slide(record: SlideRecord) -> None:
        calls.on_slide(record)
        if record.state != "failed" or options.max_failed is None:
            return
        failed = [
            found
            for one in planned
            if (found := log.refresh().get(one.slide.slide_id)) is not None
            and found.state == "failed"
            and found.attempts > one.attempts
        ]
        if len(failed) > options.max_failed:
            raise EvaluationError(
                f"{len(failed)} slides failed, and `max_failed={options.max_failed}` is the most, the last by: {record.error}"
            )

    return on_slide


def _summary(
    slides: Sequence[SlideInput],
    planned: Sequence[PlannedSlide],
    records: Mapping[str, SlideRecord],
    folder: Path,
    seconds: float,
    waited: float,
    stopped: bool,
) -> CohortSummary:
    attempts = {one.slide.slide_id: one.attempts for one in planned}
    ended = {slide.slide_id: records[slide.slide_id] for slide in slides if slide.slide_id in records}
    tried = {name for name in attempts if name in ended and ended[name].attempts > attempts[name]}
    embedded = [ended[name] for name in tried if ended[name].state == "done"]
    # a slide that was opened and found unchanged has no new attempt, and is done
    kept = [
        name
        for name, record in ended.items()
        if name not in tried and record.state != "failed" and (folder / record.file).exists()
    ]
    empty = tuple(record for record in ended.values() if record.state == "empty")
    failed = tuple(record for name, record in ended.items() if record.state == "failed" and name in tried)
    num_tried = len(tried)
    return CohortSummary(
        output=str(folder),
        num_slides=len(slides),
        num_embedded=len(embedded),
        num_kept=len(kept),
        num_left=len(slides) - num_tried - len(kept),
        empty=empty,
        failed=failed,
        num_patches=sum(record.tiles for record in embedded),
        seconds=seconds,
        data_wait_share=min(waited / seconds, 1.0),
        stopped=stopped,
    )
