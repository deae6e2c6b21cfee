"""The slides of a cohort by Ray: an actor for each worker, on a laptop or a cluster; what is done stands in files alone.

Each actor is dealt slides, embeds them with readers of its own as a process without Ray does, and helps the others in the
end. One that dies is started again, elsewhere if its node is gone, and finds from the records what is left.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from tyro.conf import arg

from ..runtime.errors import EvaluationError, ParameterError, TimmMVHybridError
from ..runtime.extras import require
from ..runtime.ranks import Ranks
from .cohort_plan import PlannedSlide
from .cohort_work import CohortWork, own_first
from .engine_calls import EngineCalls, EngineReport
from .slide_cohort import RecordLog

_POLL_S = 0.5
_STOP_S = 26.0
_END_S = 5.0


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Engine ray: where, and with how many workers.

    Attributes:
        ray_address: A cluster that runs, such as auto or HOST:6379; by default RAY_ADDRESS, or else this machine alone.
        ray_workers: Workers; by default one for each --ray-gpus of the cluster's GPUs, without GPUs one a node.
        ray_gpus: GPUs a worker, such as 0.5 for two workers on one; by default 1 where the cluster has some and the device is
            auto or cuda.
        ray_cpus: CPU cores a worker, for its readers; by default its part of a node's, at most 8.
        ray_restarts: How often a worker that died is started again.
    """

    ray_address: Annotated[str | None, arg(metavar="ADDRESS")] = None
    ray_workers: Annotated[int | None, arg(metavar="N")] = None
    ray_gpus: Annotated[float | None, arg(metavar="GPUS")] = None
    ray_cpus: Annotated[int | None, arg(metavar="N")] = None
    ray_restarts: Annotated[int, arg(metavar="N")] = 3

    def __post_init__(self) -> None:
        for name, least in (("ray_workers", 1), ("ray_cpus", 1), ("ray_gpus", 0), ("ray_restarts", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ParameterError(f"`{name}` must be at least {least}, not {value}")


@dataclass(frozen=True, kw_only=True)
class RayLayout:
    """How workers are laid out on a cluster.

    Attributes:
        num_workers: How many.
        gpus: GPUs of each.
        cpus: CPU cores of each.
    """

    num_workers: int
    gpus: float
    cpus: int


def lay_out(options: RayOptions, device: str, nodes: Sequence[dict[str, float]]) -> RayLayout:
    """Decides on workers for the nodes of a cluster.

    Args:
        options: What was asked for.
        device: As in ``ForwardOptions``.
        nodes: Resources of each node, by Ray's names ``CPU`` and ``GPU``.

    Raises:
        EvaluationError: No node has what a worker takes.
    """
    most_gpus = max((node.get("GPU", 0) for node in nodes), default=0)
    most_cpus = int(max((node.get("CPU", 0) for node in nodes), default=0))
    gpus = options.ray_gpus
    if gpus is None:
        gpus = 1.0 if most_gpus and device in ("auto", "cuda") else 0.0
    if gpus > most_gpus:
        raise EvaluationError(
            f"`ray_gpus` is {gpus:g}, and no node of the cluster has more than {most_gpus:g}; lower it, or add nodes with GPUs"
        )
    places = sum(int(node.get("GPU", 0) / gpus) for node in nodes) if gpus else len(nodes)
    num_workers = options.ray_workers or max(places, 1)
    a_node = most_gpus / gpus if gpus else -(-num_workers // max(len(nodes), 1))
    cpus = options.ray_cpus or max(min(int(most_cpus / max(a_node, 1)), 8), 1)
    if cpus > most_cpus:
        raise EvaluationError(
            f"a worker takes {cpus} CPU cores, and no node of the cluster has more than {most_cpus}; lower `ray_cpus`"
        )
    return RayLayout(num_workers=num_workers, gpus=gpus, cpus=cpus)


class RayWorker:
    """What an actor does; the driver asks it while it works."""

    def __init__(self) -> None:
        self._report: EngineReport | None = None
        self._warnings: list[str] = []
        self._stopping = False

    def run(
        self, work: CohortWork, planned: list[PlannedSlide], number: int, num_workers: int
    ) -> tuple[bool, float]:
        """Embeds the slides that are dealt to this of so many workers first, see ``CohortWork.run``."""
        calls = EngineCalls(on_batch=self._note, stopping=lambda: self._stopping)
        models = work.models(Ranks())
        order, num_own = own_first(planned, Ranks(rank=number, world_size=num_workers))
        return work.run(models, order, num_own, calls, self._warnings.append)

    def state(self) -> tuple[EngineReport | None, list[str]]:
        """Returns the last report, and the warnings since the last call."""
        warnings, self._warnings[:] = list(self._warnings), []
        report = self._report
        if report is not None:
            # each patch that was left out is reported once
            self._report = replace(report, errors=())
        return report, warnings

    def stop(self) -> None:
        """Asks it to finish what it has begun."""
        self._stopping = True

    def _note(self, report: EngineReport) -> None:
        unsaid = () if self._report is None else self._report.errors
        self._report = replace(report, errors=unsaid + report.errors)


def embed_by_ray(
    work: CohortWork,
    planned: Sequence[PlannedSlide],
    options: RayOptions,
    calls: EngineCalls,
    on_warning: Callable[[str], None],
) -> tuple[bool, float]:
    """Embeds slides by actors of Ray.

    Args:
        work: What the actors do; its folder and the slides' paths are the same on all nodes.
        planned: The slides.
        options: Where, and with how many workers.
        calls: Whom to tell, and whom to ask whether to stop.
        on_warning: Called with a sentence for each worker or reader that was lost.

    Returns:
        Whether it was told to stop, and how many seconds devices waited for patches, the mean over workers.

    Raises:
        EvaluationError: The cluster cannot be reached or lacks what a worker takes, workers were lost for good before all was
            done, or as ``CohortWork.run``.
        MissingPackageError: Ray is not installed.
        OutputError: As ``CohortWork.run``.
    """
    ray = require("ray", "ray")
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, options.ray_address)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        layout = lay_out(options, work.forward.device, nodes)
        asked = work.forward.num_workers
        work = replace(work, num_readers=layout.cpus if asked == "auto" else asked)
        actor = ray.remote(RayWorker).options(
            num_cpus=layout.cpus,
            num_gpus=layout.gpus,
            max_restarts=options.ray_restarts,
            max_task_retries=options.ray_restarts,
            # one thread works, and others answer meanwhile
            max_concurrency=4,
        )
        # sent once, however many workers there are
        shared, slides = ray.put(work), ray.put(list(planned))
        workers = [actor.remote() for _ in range(min(layout.num_workers, len(planned)))]
        tasks = {
            worker.run.remote(shared, slides, number, len(workers)): worker
            for number, worker in enumerate(workers)
        }
        return _Watch(ray, work, planned, tasks, calls, on_warning).until_all_end()
    finally:
        if is_ours:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    # Ray would tell its makers of each cluster that it starts
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    in_main = threading.current_thread() is threading.main_thread()
    # Ray takes the signal that stops a run between two slides
    handler = signal.getsignal(signal.SIGTERM)
    local = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    # of many kinds: ConnectionError, ValueError, RuntimeError
    except Exception as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        reason = " ".join(str(error).split())
        raise EvaluationError(
            f"Ray cannot be reached or started at {where} ({reason}); start a cluster with 'ray start', or give `ray_address`"
        ) from error
    if in_main:
        signal.signal(signal.SIGTERM, handler)


class _Watch:
    """Follows workers until they end: tells of slides by their records, and of progress by asking."""

    def __init__(
        self,
        ray: Any,
        work: CohortWork,
        planned: Sequence[PlannedSlide],
        tasks: dict[Any, Any],
        calls: EngineCalls,
        on_warning: Callable[[str], None],
    ) -> None:
        self.ray = ray
        self.tasks = tasks
        self.calls = calls
        self.on_warning = on_warning
        self._log = RecordLog(work.folder)
        self._waiting = {one.slide.slide_id: one.attempts for one in planned}
        self._num_planned = len(planned)
        self._workers = list(tasks.values())
        self._asked: dict[Any, int] = {}
        self._reports: dict[int, EngineReport] = {}

    def until_all_end(self) -> tuple[bool, float]:
        """Follows them; returns as ``embed_by_ray``."""
        stopped, waited, deadline = False, [0.0], None
        while self.tasks:
            done, _ = self.ray.wait(list(self.tasks), timeout=_POLL_S)
            for task in done:
                worker = self.tasks.pop(task)
                result = self._result(task)
                if result is not None:
                    stopped |= result[0]
                    waited.append(result[1])
                self._asked = {ask: n for ask, n in self._asked.items() if self._workers[n] is not worker}
            self._tell_slides()
            self._tell_progress()
            if deadline is None and self.calls.stopping():
                stopped, deadline = True, time.monotonic() + _STOP_S
                for worker in self.tasks.values():
                    worker.stop.remote()
            if deadline is None and not self._waiting:
                # a worker that waits for a node is not needed any more; the others are about to end
                deadline = time.monotonic() + _END_S
            if deadline is not None and time.monotonic() > deadline:
                break
        self._tell_slides()
        num_lost = len(self._workers) - (len(waited) - 1) - len(self.tasks)
        if num_lost and self._waiting and not stopped:
            raise EvaluationError(
                f"{num_lost} of {len(self._workers)} workers of Ray were lost for good, and {len(self._waiting)} slides are left; "
                "find out why (out of memory? a node that left?), and run it again to go on"
            )
        return stopped, sum(waited) / max(len(waited) - 1, 1)

    def _result(self, task: Any) -> tuple[bool, float] | None:
        try:
            result: tuple[bool, float] = self.ray.get(task)
            return result
        except self.ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, TimmMVHybridError) else error) from None
        except self.ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            self.on_warning(f"a worker of Ray is lost ({reason}); the others go on without it")
            return None

    def _tell_slides(self) -> None:
        records = self._log.refresh()
        for name in [name for name in self._waiting if name in records]:
            if records[name].attempts > self._waiting[name]:
                del self._waiting[name]
                self.calls.on_slide(records[name])

    def _tell_progress(self) -> None:
        if self._asked:
            answered, _ = self.ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            for ask in answered:
                number = self._asked.pop(ask)
                try:
                    report, warnings = self.ray.get(ask)
                except self.ray.exceptions.RayError:
                    # it is being started again
                    continue
                for warning in warnings:
                    self.on_warning(warning)
                if report is not None:
                    self._reports[number] = report
            self._report()
        for worker in self.tasks.values():
            number = self._workers.index(worker)
            if number not in self._asked.values():
                self._asked[worker.state.remote()] = number

    def _report(self) -> None:
        reports = list(self._reports.values())
        if not reports:
            return
        opened = min(sum(report.slides_opened for report in reports), self._num_planned)
        self.calls.on_batch(
            EngineReport(
                tiles_done=sum(report.tiles_done for report in reports),
                tiles_known=sum(report.tiles_known for report in reports),
                slides_opened=opened,
                slides_left=self._num_planned - opened,
                seconds=max(report.seconds for report in reports),
                errors=tuple(error for report in reports for error in report.errors),
            )
        )
        self._reports = {n: replace(report, errors=()) for n, report in self._reports.items()}
