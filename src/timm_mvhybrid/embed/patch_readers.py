"""Processes that open slides and read patches for all slides of a cohort: watched, replaced when they die or stall."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection, forkserver, get_all_start_methods, get_context
from typing import Any, Protocol, TypeVar

from ..data import PatchSource
from ..runtime.errors import DataError, TimmMVHybridError
from ..runtime.urls import without_credentials
from .batch_buffers import BatchBuffer
from .model_input import read_patch
from .slide_opening import OpenedSlide, SlideOpening, open_slide_of_cohort

_MAX_SOURCES = 8
"""Slides that a reader keeps open; each may cache 32 MB."""
_MAX_BUFFERS = 16
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class PatchReading:
    """A request for some patches of a source.

    Attributes:
        key: Names the source among all of a run.
        source: The source; None where this reader has it.
        indices: Which patches.
        size: Height and width in px at which they are wanted.
        number: Of the buffer to write them to, (B, 3, H, W) uint8.
        buffer: The buffer; None where this reader has it.
    """

    key: int
    source: PatchSource | None
    indices: range
    size: tuple[int, int]
    number: int
    buffer: BatchBuffer | None


@dataclass(frozen=True, kw_only=True)
class ReadPatches:
    """What was read.

    Attributes:
        indices: The patches that could be read; their pixels are the first of the buffer.
        errors: Index and one-line message of each that could not.
    """

    indices: list[int]
    errors: list[tuple[int, str]]


@dataclass(eq=False, kw_only=True)
class ReaderTask:
    """One thing to do for a reader.

    Attributes:
        name: What it is, for messages.
        request: What is asked; the source of a reading is sent only to readers that lack it.
        owner: Whatever the answer is for.
        attempts: How often it was given to a reader.
    """

    name: str
    request: SlideOpening | PatchReading
    owner: Any
    attempts: int = 0


Answer = OpenedSlide | ReadPatches | DataError


class _Closes(Protocol):
    def close(self) -> None: ...


_T = TypeVar("_T", bound=_Closes)


class _Recent(OrderedDict[int, _T]):
    """Keeps what was used last; both ends of a pipe count alike, so that each knows what the reader has."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def take(self, key: int, given: _T | None) -> _T:
        """Takes what is given, or was before."""
        if given is not None:
            self[key] = given
        self.move_to_end(key)
        found = self[key]
        while len(self) > self.limit:
            self.popitem(last=False)[1].close()
        return found


class _There:
    """Stands for what is at the other end."""

    def close(self) -> None:
        """Is closed there."""


class _Served:
    """What a reader does, in its process."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress
        self.sources: _Recent[PatchSource] = _Recent(_MAX_SOURCES)
        self.buffers: _Recent[BatchBuffer] = _Recent(_MAX_BUFFERS)

    def answer(self, request: SlideOpening | PatchReading) -> Answer:
        if isinstance(request, SlideOpening):
            return open_slide_of_cohort(request)
        try:
            return self.read(request)
        except TimmMVHybridError as error:
            return DataError(str(error))
        # libraries raise whatever they meet in a damaged file
        except Exception as error:
            where = self.sources[request.key].path
            reason = without_credentials(f"{type(error).__name__}: {error}")
            return DataError(f"{where}: cannot be read ({reason}); copy it anew")

    def read(self, request: PatchReading) -> ReadPatches:
        source = self.sources.take(request.key, request.source)
        buffer = self.buffers.take(request.number, request.buffer)
        pixels = buffer.pixels((len(request.indices), 3, *request.size))
        indices: list[int] = []
        errors: list[tuple[int, str]] = []
        for index in request.indices:
            patch = read_patch(source, index, request.size)
            if isinstance(patch, str):
                errors.append((index, patch))
            else:
                pixels[len(indices)] = patch.transpose(2, 0, 1)
                indices.append(index)
            self.progress.value += 1
        return ReadPatches(indices=indices, errors=errors)

    def close(self) -> None:
        for source in self.sources.values():
            source.close()
        for buffer in self.buffers.values():
            buffer.close()


def serve(pipe: connection.Connection, progress: Any, is_process: bool) -> None:
    """Answers requests until the other end of the pipe is closed."""
    if is_process:
        # a terminal and a scheduler send these to all processes; whoever owns the readers decides
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", None)):
            if number is not None:
                signal.signal(number, signal.SIG_IGN)
    served = _Served(progress)
    try:
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                pipe.send(served.answer(pipe.recv()))
    finally:
        served.close()
        pipe.close()


@dataclass(eq=False)
class _Reader:
    """A reader as its owner sees it."""

    number: int
    pipe: connection.Connection
    progress: Any
    process: Any
    task: ReaderTask | None = None
    sources: _Recent[_There] = field(default_factory=lambda: _Recent(_MAX_SOURCES))
    buffers: _Recent[_There] = field(default_factory=lambda: _Recent(_MAX_BUFFERS))
    seen: int = 0
    since: float = 0.0

    def without_what_is_there(self, reading: PatchReading) -> PatchReading:
        """Leaves out what the reader has, and notes that it has the rest."""
        lacks_source, lacks_buffer = reading.key not in self.sources, reading.number not in self.buffers
        self.sources.take(reading.key, _There())
        self.buffers.take(reading.number, _There())
        return replace(
            reading,
            source=reading.source if lacks_source else None,
            buffer=reading.buffer if lacks_buffer else None,
        )

    def seconds_silent(self) -> float:
        """Says for how long no patch was finished."""
        done = int(self.progress.value)
        if done != self.seen:
            self.seen, self.since = done, time.monotonic()
        return time.monotonic() - self.since


def _context() -> Any:
    """Chooses how readers are started: forked from a process that has computed nothing, where there are forks."""
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["__main__", __name__])
    return context


def prepare_readers() -> None:
    """Starts what readers will be forked from, so that its imports take no time of theirs."""
    if _context().get_start_method() == "forkserver":
        forkserver.ensure_running()


class PatchReaders:
    """A fixed number of readers, each with one task at a time.

    A reader that dies, or finishes no patch for a while, is killed and replaced, and its task is given to the next one, up
    to a number of times.

    Args:
        num_processes: Readers; 0 is one in a thread of this process, which cannot be replaced.
        timeout_s: Seconds without a patch, or without an opened slide, after which a reader counts as stalled.
        max_attempts: How often a task is tried before that is its answer.
        on_warning: Called with a sentence for each reader that was lost.
    """

    def __init__(
        self,
        num_processes: int,
        *,
        timeout_s: float,
        max_attempts: int,
        on_warning: Callable[[str], None],
    ) -> None:
        self.timeout_s = timeout_s
        self.max_attempts = max_attempts
        self.on_warning = on_warning
        # not forked from here: this process has threads, and locks that they hold
        self._context = _context()
        self._readers = [self._start(number, num_processes > 0) for number in range(max(num_processes, 1))]

    def __len__(self) -> int:
        """Returns the number of readers."""
        return len(self._readers)

    def _start(self, number: int, is_process: bool) -> _Reader:
        here, there = self._context.Pipe()
        progress = self._context.Value(ctypes.c_ulong, lock=False)
        if not is_process:
            threading.Thread(target=serve, args=(there, progress, False), daemon=True).start()
            return _Reader(number, here, progress, None)
        process = self._context.Process(
            target=serve, args=(there, progress, True), daemon=True, name=f"reader {number}"
        )
        process.start()
        there.close()
        return _Reader(number, here, progress, process)

    @property
    def num_idle(self) -> int:
        """Readers without a task."""
        return sum(reader.task is None for reader in self._readers)

    def give(self, task: ReaderTask) -> None:
        """Gives a task to an idle reader, of which there must be one; best to one that has the slide open."""
        key = task.request.key if isinstance(task.request, PatchReading) else -1
        idle = [reader for reader in self._readers if reader.task is None]
        self._give(next((reader for reader in idle if key in reader.sources), idle[0]), task)

    def _give(self, reader: _Reader, task: ReaderTask) -> None:
        request = task.request
        if isinstance(request, PatchReading):
            request = reader.without_what_is_there(request)
        task.attempts += 1
        reader.task, reader.since, reader.seen = task, time.monotonic(), int(reader.progress.value)
        # one that died is noticed when it is waited for
        with suppress(BrokenPipeError, ConnectionResetError):
            reader.pipe.send(request)

    def wait(
        self, others: Sequence[connection.Connection], seconds: float = _POLL_S
    ) -> Iterator[tuple[ReaderTask, Answer]]:
        """Waits until a reader answers, or something else can be received, or for a while.

        Args:
            others: Further pipes to wait for; what they bring is left to the caller.
            seconds: The longest wait.

        Yields:
            Tasks and their answers.
        """
        pipes: list[Any] = [reader.pipe for reader in self._readers if reader.task is not None]
        ready = connection.wait([*pipes, *others], timeout=seconds)
        for index, reader in enumerate(self._readers):
            task = reader.task
            if task is None:
                continue
            problem = ""
            if reader.pipe in ready:
                try:
                    answer = reader.pipe.recv()
                except (EOFError, ConnectionResetError):
                    problem = f"ended {_exit(reader)}"
                else:
                    reader.task = None
                    yield task, answer
                    continue
            elif reader.process is not None and reader.seconds_silent() > self.timeout_s:
                problem = f"has not answered for {self.timeout_s:g} s"
            if problem:
                self._discard(reader)
                self._readers[index] = self._start(reader.number, reader.process is not None)
                error = self._lost(task, reader.number, problem)
                if error is None:
                    self._give(self._readers[index], task)
                else:
                    yield task, error

    def _lost(self, task: ReaderTask, number: int, problem: str) -> DataError | None:
        sentence = f"{task.name}: reader {number} {problem}"
        if task.attempts < self.max_attempts:
            self.on_warning(
                f"{sentence}; another one tries it again ({task.attempts + 1} of {self.max_attempts})"
            )
            return None
        return DataError(
            f"{sentence}, {task.attempts} times in all; find out whether the file system answers and the file is whole, and "
            "start again"
        )

    @staticmethod
    def _discard(reader: _Reader) -> None:
        if reader.process is not None:
            # one that waits for a file system may outlive even this, and is not waited for
            with suppress(OSError):
                reader.process.kill()
        reader.pipe.close()

    def close(self) -> None:
        """Ends all readers, whatever they do."""
        for reader in self._readers:
            self._discard(reader)
        end = time.monotonic() + 2
        for reader in self._readers:
            if reader.process is not None:
                reader.process.join(max(end - time.monotonic(), 0.01))


def _exit(reader: _Reader) -> str:
    if reader.process is None:
        return "by an error"
    reader.process.join(1)
    code = reader.process.exitcode
    if code is None or code >= 0:
        return f"with code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    return f"by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
