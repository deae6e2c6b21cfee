"""The slides of a cohort on this machine: readers shared by all slides, one model a device, no waiting between slides.

While a slide's last batches are computed the next slide's are being read, and the ones after it opened. Batches hold
patches of one slide alone, in its order, so that features do not depend on what else is embedded, nor by how many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from queue import Empty, SimpleQueue
from typing import Any

from ..runtime.errors import EvaluationError, OutputError, TimmMVHybridError, one_sentence
from .batch_buffers import BatchBuffer, Buffers
from .cohort_folder import CohortFolder
from .cohort_plan import CohortSettings, PlannedSlide
from .device_lane import DeviceLane, LaneEvent, ReadBatch, SlideJob
from .engine_calls import EngineCalls, EngineReport
from .patch_readers import PatchReaders, ReaderTask
from .patch_reading import Answer, PatchReading, ReadPatches
from .slide_cohort import SlideState
from .slide_opening import OpenedSlide
from .source_embedding import DeviceMemoryError, PlacedModel, SourceEmbedding

_SAME_FOR_ALL = (OutputError, DeviceMemoryError)
"""Errors that every other slide would meet, too."""
_JOIN_S = 3.0


class LocalEngine:
    """Embeds slides with the readers and devices of this process.

    Args:
        models: The model on each device; one twice is two threads.
        readers: The readers; they are closed with the engine.
        folder: Of the cohort.
        settings: What features depend on.
        batch_size: Patches per batch.
        skip_corrupt: Leave unreadable patches out instead of failing their slide.
        stop_within_s: Seconds that slides get to be finished once the engine is to stop.
        calls: Whom it tells.
    """

    def __init__(
        self,
        models: Sequence[PlacedModel],
        readers: PatchReaders,
        folder: CohortFolder,
        settings: CohortSettings,
        *,
        batch_size: int,
        skip_corrupt: bool = False,
        stop_within_s: float = 20.0,
        calls: EngineCalls | None = None,
    ) -> None:
        self.readers = readers
        self.folder = folder
        self.settings = settings
        self.batch_size = batch_size
        self.skip_corrupt = skip_corrupt
        self.stop_within_s = stop_within_s
        self.calls = calls or EngineCalls()
        self.lanes = [DeviceLane(model, self._tell) for model in models]
        # those being read, one a lane being computed, and one a lane that is ready
        self.buffers = Buffers(len(readers) + 2 * len(models))
        self._events: SimpleQueue[LaneEvent | tuple[SlideJob, Future[Any]]] = SimpleQueue()
        self._wake, self._bell = Pipe(duplex=False)
        self._jobs: list[SlideJob] = []
        self._opening = 0
        self._tiles_done = self._tiles_known = self._num_opened = 0
        self._start = time.monotonic()

    @property
    def seconds_waited(self) -> float:
        """How long devices have waited for patches, the mean over devices."""
        return sum(lane.seconds_waited for lane in self.lanes) / len(self.lanes)

    def run(self, planned: Sequence[PlannedSlide], num_own: int | None = None) -> bool:
        """Embeds the slides that no other process claims.

        Args:
            planned: The slides, in the order in which they are begun.
            num_own: How many of them, from the first, are meant for this process; the others it takes one by one, once it
                is about to have nothing to do. None means all.

        Returns:
            False if the engine was told to stop.

        Raises:
            OutputError: The disk does not take a file.
            EvaluationError: A batch does not fit into memory.
        """
        waiting = iter(planned)
        self._left = len(planned)
        self._left_of_others = 0 if num_own is None else len(planned) - num_own
        deadline = None
        for lane in self.lanes:
            lane.start()
        self._finisher = ThreadPoolExecutor(1, "finish slides")
        try:
            while True:
                if deadline is None and self.calls.stopping():
                    deadline = time.monotonic() + self.stop_within_s
                    self._drop_those_not_begun()
                if deadline is None:
                    self._open_ahead(waiting)
                self._read()
                if not self._jobs and (deadline is not None or not self._left):
                    return deadline is None
                if deadline is not None and time.monotonic() > deadline:
                    return False
                self._handle_what_comes()
        finally:
            self._close()

    def _open_ahead(self, waiting: Iterator[PlannedSlide]) -> None:
        """Opens slides before they are needed: one more than there are devices, and more while they are small."""
        while self._left and self.readers.num_idle:
            unread = [job for job in self._jobs if job.next_read < job.num_batches or job.opened is None]
            num_batches = sum(job.num_batches - job.next_read for job in unread)
            enough = len(unread) > len(self.lanes) and num_batches >= self.buffers.limit
            if self._left <= self._left_of_others and len(unread) >= len(self.lanes):
                return
            if enough or len(unread) > len(self.lanes) + self.buffers.limit:
                return
            self._left -= 1
            planned = next(waiting)
            claim = self.folder.claim(planned)
            self._num_opened += 1
            if claim is None:
                continue
            job = SlideJob(self._num_opened, planned, claim, time.monotonic())
            self._jobs.append(job)
            task = ReaderTask(name=f"{planned.slide.path}", request=planned.opening(self.settings), owner=job)
            self.readers.give(task)

    def _read(self) -> None:
        """Gives idle readers the batches that are needed first, of the lane that has the fewest."""
        while self.readers.num_idle and self.buffers.num_left:
            jobs = [job for job in self._jobs if job.next_read < job.num_batches and not job.dropped]
            if not jobs:
                return
            job = min(jobs, key=lambda job: job.lane.num_reading if job.lane else 0)
            assert job.embedding is not None
            assert job.source is not None
            assert job.lane is not None
            start = job.next_read * self.batch_size
            indices = range(start, min(start + self.batch_size, len(job.source)))
            height, width = job.embedding.size
            buffer = self.buffers.take(self.batch_size * 3 * height * width)
            reading = PatchReading(
                key=job.number,
                source=job.source,
                indices=indices,
                size=job.embedding.size,
                number=buffer.number,
                buffer=buffer,
            )
            name = f"{job.planned.slide.path}, patches {indices[0]} to {indices[-1]}"
            owner = (job, job.next_read, buffer)
            job.next_read += 1
            job.lane.num_reading += 1
            self.readers.give(ReaderTask(name=name, request=reading, owner=owner))

    def _handle_what_comes(self) -> None:
        for task, answer in self.readers.wait([self._wake]):
            if isinstance(task.owner, SlideJob):
                self._opened(task.owner, answer)
            else:
                self._was_read(task.owner, answer)
        with suppress(Empty):
            while True:
                event = self._events.get_nowait()
                self._wake.recv_bytes()
                if isinstance(event, LaneEvent):
                    self._was_computed(event)
                else:
                    self._was_finished(*event)

    def _opened(self, job: SlideJob, answer: Answer) -> None:
        if job.dropped:
            return
        if not isinstance(answer, OpenedSlide):
            self._record(job, "failed", error=str(answer))
            return
        job.opened = answer
        if answer.state == "unchanged":
            self.folder.note_unchanged(job, answer)
            self._end(job)
            return
        if answer.source is None:
            self._record(job, "empty" if answer.state == "empty" else "failed", error=answer.error)
            return
        job.lane = min(self.lanes, key=lambda lane: lane.num_pending)
        try:
            job.embedding = SourceEmbedding(
                job.lane.placed, answer.source, self.folder.file(job.planned), skip_corrupt=self.skip_corrupt
            )
        except EvaluationError as error:
            self._record(job, "failed", error=one_sentence(error))
            return
        job.source = answer.source
        job.num_batches = -(-len(answer.source) // self.batch_size)
        job.lane.num_pending += job.num_batches
        self._tiles_known += len(answer.source)

    def _was_read(self, owner: tuple[SlideJob, int, BatchBuffer], answer: Answer) -> None:
        job, number, buffer = owner
        assert job.lane is not None
        if isinstance(answer, ReadPatches) and not job.dropped:
            job.ready[number] = ReadBatch(job=job, number=number, found=answer, buffer=buffer)
            while job.next_lane in job.ready:
                job.lane.put(job.ready.pop(job.next_lane))
                job.next_lane += 1
            return
        job.lane.num_reading -= 1
        self.buffers.give_back(buffer)
        if not job.dropped:
            self._record(job, "failed", error=str(answer))

    def _was_computed(self, event: LaneEvent) -> None:
        batch = event.batch
        job = batch.job
        assert job.lane is not None
        job.lane.num_reading -= 1
        self.buffers.give_back(batch.buffer)
        if job.dropped:
            return
        job.lane.num_pending -= 1
        job.num_computed += 1
        self._tiles_done += len(batch.found.indices) + len(batch.found.errors)
        if event.error is not None:
            self._fail_by(job, event.error)
            return
        self._report(tuple(message for _, message in batch.found.errors))
        if job.num_computed == job.num_batches:
            # waiting for the disk is not the device's work
            future = self._finisher.submit(self.folder.finish, job)
            future.add_done_callback(lambda done: self._tell((job, done)))

    def _was_finished(self, job: SlideJob, done: Future[str]) -> None:
        error = done.exception()
        if error is not None:
            self._fail_by(job, error)
            return
        self._record(job, "done", file_digest=done.result())

    def _fail_by(self, job: SlideJob, error: BaseException) -> None:
        if isinstance(error, TimmMVHybridError) and not isinstance(error, _SAME_FOR_ALL):
            self._record(job, "failed", error=one_sentence(error))
        else:
            raise error

    def _record(self, job: SlideJob, state: SlideState, *, error: str = "", file_digest: str = "") -> None:
        record = self.folder.record(job, state, error=error, file_digest=file_digest)
        self._end(job)
        self.calls.on_slide(record)

    def _drop_those_not_begun(self) -> None:
        for job in list(self._jobs):
            if job.next_lane == 0:
                self._end(job)

    def _end(self, job: SlideJob) -> None:
        """Lets go of a slide; what was not finished of its file is removed."""
        if job.lane is not None and not job.dropped:
            # whatever of it is still under way does not count
            job.lane.num_pending -= job.num_batches - job.num_computed
        job.dropped = True
        for batch in job.ready.values():
            assert job.lane is not None
            job.lane.num_reading -= 1
            self.buffers.give_back(batch.buffer)
        job.ready.clear()
        if job in self._jobs:
            self._jobs.remove(job)
        if job.embedding is not None:
            job.embedding.__exit__(None, None, None)
        job.claim.close()

    def _report(self, errors: tuple[str, ...] = ()) -> None:
        self.calls.on_batch(
            EngineReport(
                tiles_done=self._tiles_done,
                tiles_known=self._tiles_known,
                slides_opened=self._num_opened,
                slides_left=self._left,
                seconds=time.monotonic() - self._start,
                errors=errors,
            )
        )

    def _tell(self, event: LaneEvent | tuple[SlideJob, Future[Any]]) -> None:
        """Hands an event of another thread to the one that runs the engine, and wakes it."""
        self._events.put(event)
        with suppress(OSError):
            self._bell.send_bytes(b"!")

    def _close(self) -> None:
        jobs = list(self._jobs)
        for job in jobs:
            job.dropped = True
        for lane in self.lanes:
            lane.put(None)
        end = time.monotonic() + _JOIN_S
        for lane in self.lanes:
            lane.join(max(end - time.monotonic(), 0.01))
        self._finisher.shutdown(wait=False, cancel_futures=True)
        for job in jobs:
            self._end(job)
        self.readers.close()
        self.buffers.close()
        self._wake.close()
        self._bell.close()
