"""One device's work on a cohort: batches that are ready → rows of the slides' files, in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from ..data import PatchSource
from .batch_buffers import BatchBuffer
from .cohort_plan import PlannedSlide
from .model_input import PatchBatch
from .patch_reading import ReadPatches
from .slide_opening import OpenedSlide
from .source_embedding import PlacedModel, SourceEmbedding


@dataclass(eq=False)
class SlideJob:
    """A slide that is being embedded.

    Attributes:
        number: Names its source among all of the run.
        planned: What was asked for.
        claim: Keeps other processes from the slide; closed with the job.
        start: When it was begun, by ``time.monotonic``.
        opened: What was found; None before.
        source: Its patches.
        lane: Who computes it.
        embedding: Its file.
        num_batches: Batches there are.
        next_read: The next one to be read.
        next_lane: The next one for the lane.
        num_computed: Those that the lane is done with.
        ready: Batches that were read before their turn.
        dropped: Whether it was given up, so that what is still under way for it does not count.
    """

    number: int
    planned: PlannedSlide
    claim: ExitStack
    start: float
    opened: OpenedSlide | None = None
    source: PatchSource | None = None
    lane: DeviceLane | None = None
    embedding: SourceEmbedding | None = None
    num_batches: int = 0
    next_read: int = 0
    next_lane: int = 0
    num_computed: int = 0
    ready: dict[int, ReadBatch] = field(default_factory=dict)
    dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class ReadBatch:
    """A batch in shared memory.

    Attributes:
        job: Whose it is.
        number: Of the batch.
        found: What was read.
        buffer: Its pixels.
    """

    job: SlideJob
    number: int
    found: ReadPatches
    buffer: BatchBuffer


@dataclass(frozen=True, kw_only=True)
class LaneEvent:
    """What happened to a batch.

    Attributes:
        batch: The batch; its buffer is free.
        error: What went wrong; None where nothing did.
    """

    batch: ReadBatch
    error: BaseException | None = None


class DeviceLane(threading.Thread):
    """A thread that computes on one device whatever is put into it, and says so.

    Args:
        placed: The model on the device.
        on_event: Called in this thread after each batch.

    Attributes:
        num_pending: Batches of its slides that are not computed yet; counted by the owner.
        num_reading: Batches of its slides in buffers; counted by the owner.
        seconds_waited: How long the device has waited for a batch, between the first and the last one.
    """

    def __init__(self, placed: PlacedModel, on_event: Callable[[LaneEvent], None]) -> None:
        super().__init__(daemon=True, name=f"embed on {placed.device}")
        self.placed = placed
        self.num_pending = 0
        self.num_reading = 0
        self.seconds_waited = 0.0
        self._on_event = on_event
        self._batches: queue.SimpleQueue[ReadBatch | None] = queue.SimpleQueue()

    def put(self, batch: ReadBatch | None) -> None:
        """Adds a batch; None ends the thread."""
        self._batches.put(batch)

    def run(self) -> None:
        """Computes until it is told to end."""
        if self.placed.device.type == "cuda":
            # kernels are launched on the thread's own device
            torch.cuda.set_device(self.placed.device)
        with torch.inference_mode():
            batch = self._batches.get()
            while batch is not None:
                self._on_event(LaneEvent(batch=batch, error=self._compute(batch)))
                start = time.perf_counter()
                batch = self._batches.get()
                # what passes after the last batch is no waiting
                if batch is not None:
                    self.seconds_waited += time.perf_counter() - start

    def _compute(self, batch: ReadBatch) -> BaseException | None:
        embedding = batch.job.embedding
        if batch.job.dropped or embedding is None:
            return None
        try:
            found = batch.found
            images = batch.buffer.pixels((len(found.indices), 3, *embedding.size))
            embedding.add(
                PatchBatch(indices=found.indices, images=torch.from_numpy(images), errors=found.errors)
            )
        # whatever it is, the slide's owner says it
        except BaseException as error:
            return error
        return None
