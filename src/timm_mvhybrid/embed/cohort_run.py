"""Slides + model → a folder with one file a slide, and ``cohort.jsonl``; alone, or as one of several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ..data import Edge, SlideInput, TilingOptions
from ..runtime.atomic_file import make_folder
from ..runtime.cores import num_loader_workers, num_usable_cores
from ..runtime.errors import EvaluationError, ParameterError
from ..runtime.option_words import word
from ..runtime.ranks import Ranks
from .backbone import Backbone
from .cohort_plan import CohortSettings, PlannedSlide, check_folder, plan_slides
from .cohort_work import CohortWork, own_first
from .embeddings import ForwardOptions
from .engine_calls import EngineCalls
from .pooling import check_pooling
from .ray_engine import RayOptions, embed_by_ray
from .slide_cohort import RecordLog, SlideRecord


def _read_part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    return int(number), int(of)


@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """How many slides are embedded into a folder.

    Attributes:
        engine: local embeds on this machine, or as one of torchrun's processes; ray starts workers on a cluster of Ray, or on
            this machine (extra ray).
        max_failed: Slides that may fail before the run is given up; none gives up, by default.
        reader_timeout_s: Seconds that a process which reads may take for one patch, or for opening a slide, before it counts as
            stalled, is named, killed and replaced.
        max_reads: How often patches are tried to be read by processes that stall or die, before their slide fails.
        part: Which of how many parts of the slides, from 0, this process begins with, such as 3/16 for a task of a scheduler's
            array; it goes on with what no other one has begun. For processes that are not of torchrun or Ray.
        ray: Of engine ray.
    """

    engine: Literal["local", "ray"] = "local"

    max_failed: Annotated[int | None, arg(metavar="N")] = None
    reader_timeout_s: Annotated[float, arg(name="reader-timeout", metavar="SECONDS")] = 300.0
    max_reads: Annotated[int, arg(metavar="N")] = 3
    part: Annotated[tuple[int, int], word("I/N", _read_part, lambda part: f"{part[0]}/{part[1]}")] = (0, 1)
    ray: Annotated[RayOptions, arg(name="")] = field(default_factory=RayOptions)

    def __post_init__(self) -> None:
        if self.max_failed is not None and self.max_failed < 0:
            raise ParameterError(f"`max_failed` must be at least 0, not {self.max_failed}")
        if not 0 < self.reader_timeout_s < float("inf"):
            raise ParameterError(
                f"`reader_timeout_s` must be finite and above 0, not {self.reader_timeout_s}"
            )
        if not 0 <= self.part[0] < self.part[1]:
            raise ParameterError(
                f"`part` is {self.part[0]}/{self.part[1]}; it must be from 0/N to N-1/N, such as 3/16"
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
        EvaluationError: The model or a device cannot do what is asked, a file would replace something else's, more slides
            failed than may, or the cluster cannot be reached.
        MissingPackageError: The engine is not installed.
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
        is_local = options.engine == "local"
        if not is_local and ranks.world_size > 1:
            raise ParameterError(
                "`engine='ray'` starts its own processes; leave torchrun out, or take `engine='local'`"
            )
        # where Ray's workers run, paths begin elsewhere
        folder = Path(output) if is_local else Path(output).absolute()
        given = list(slides) if is_local else [_with_absolute_paths(slide) for slide in slides]
        settings = CohortSettings.of(
            backbone,
            forward,
            tiling or TilingOptions(),
            place=None if place is None else Path(place).absolute(),
            edge=edge,
        )
        work = CohortWork(
            backbone=backbone,
            folder=folder,
            settings=settings,
            forward=forward,
            num_readers=_num_readers(num_workers, ranks),
            reader_timeout_s=options.reader_timeout_s,
            max_reads=options.max_reads,
            skip_corrupt=skip_corrupt,
        )
        check_pooling(backbone.model, forward.pool)
        models = work.models(ranks) if is_local else []

        def plan() -> list[PlannedSlide]:
            found = plan_slides(given, folder, settings, RecordLog(folder).records, overwrite=overwrite)
            make_folder(folder)
            check_folder(folder)
            return found

        planned = ranks.on_first(plan)
        log = RecordLog(folder)
        waited, stopped = 0.0, False
        told = replace(calls, on_slide=_counting(planned, log, options, calls))
        if planned and is_local:
            dealt = ranks if ranks.world_size > 1 else Ranks(rank=options.part[0], world_size=options.part[1])
            stopped, waited = work.run(models, *own_first(planned, dealt), told, on_warning)
        elif planned:
            stopped, waited = embed_by_ray(work, planned, options.ray, told, on_warning)
        stopped = any(ranks.gather(stopped))
        seconds = time.perf_counter() - start
        return _summary(given, planned, log.refresh(), folder, seconds, waited, stopped)


def _with_absolute_paths(slide: SlideInput) -> SlideInput:
    coords = None if slide.coords is None else slide.coords.absolute()
    return replace(slide, path=slide.path.absolute(), coords=coords)


def _num_readers(wanted: int, ranks: Ranks) -> int:
    """Shares the cores among the processes of this machine."""
    return num_loader_workers(min(wanted, max(num_usable_cores() // ranks.local_world_size, 1)), wanted)


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
                f"{len(failed)} of {len(planned)} slides failed, and `max_failed={options.max_failed}` is the most, the last by: {record.error}"
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
