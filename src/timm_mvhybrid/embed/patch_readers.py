"""Processes that open slides and read patches for all slides of a cohort: watched, replaced when they die or stall."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context, resource_tracker
from types import ModuleType
from typing import Any

from ..runtime.errors import DataError
from ..runtime.reads_only import READS_ONLY
from .patch_reading import (
    MAX_BUFFERS,
    MAX_SOURCES,
    STOPPING_SIGNALS,
    Answer,
    KeptThere,
    PatchReading,
    Recent,
    serve,
)
from .slide_opening import SlideOpening

_POLL_S = 0.2


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


@dataclass(eq=False)
class _Reader:
    """A reader as its owner sees it."""

    number: int
    pipe: connection.Connection
    progress: Any
    process: Any
    task: ReaderTask | None = None
    sources: Recent[KeptThere] = field(default_factory=lambda: Recent(MAX_SOURCES))
    buffers: Recent[KeptThere] = field(default_factory=lambda: Recent(MAX_BUFFERS))
    seen: int = 0
    since: float = 0.0

    def without_what_is_there(self, reading: PatchReading) -> PatchReading:
        """Leaves out what the reader has, and notes that it has the rest."""
        lacks_source, lacks_buffer = reading.key not in self.sources, reading.number not in self.buffers
        self.sources.take(reading.key, KeptThere())
        self.buffers.take(reading.number, KeptThere())
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


@contextmanager
def _starting() -> Iterator[None]:
    """Lets processes begin with what reading needs, and nothing of the program that starts them.

    They are not forked: this process has threads, and locks that they hold. Without the program's own module, which they
    would otherwise run to find what it defines, neither its imports nor torch are loaded.
    """
    main, before = sys.modules["__main__"], os.environ.get(READS_ONLY)
    can_hold = hasattr(signal, "pthread_sigmask")
    if can_hold:
        # as long as it runs already, it leaves the mask alone
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING_SIGNALS)
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ[READS_ONLY] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if before is None:
            del os.environ[READS_ONLY]
        else:
            os.environ[READS_ONLY] = before
        if can_hold:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


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
        self._context = get_context("spawn")
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
        with _starting():
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
