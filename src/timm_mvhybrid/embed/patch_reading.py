"""What happens in a process that reads: slides are opened, and patches written to shared memory.

It needs neither torch nor a model, see ``runtime/reads_only.py``: without them a reader starts in a fifth of the time and holds a tenth
of the memory.
"""

from __future__ import annotations

import signal
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Protocol, TypeVar

import numpy as np

from ..data import PatchError, PatchSource
from ..data.fitting import fit_image
from ..runtime.errors import DataError, TimmMVHybridError
from ..runtime.urls import without_credentials
from .batch_buffers import BatchBuffer
from .slide_opening import OpenedSlide, SlideOpening, open_slide_of_cohort

MAX_SOURCES = 8
"""Slides that a reader keeps open."""
MAX_BUFFERS = 16
STOPPING_SIGNALS = {
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
}
"""A terminal and a scheduler send these to all processes; whoever owns the readers decides."""


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


Answer = OpenedSlide | ReadPatches | DataError


class _Closes(Protocol):
    def close(self) -> None: ...


_T = TypeVar("_T", bound=_Closes)


class Recent(OrderedDict[int, _T]):
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


class KeptThere:
    """Stands for what is at the other end."""

    def close(self) -> None:
        """Is closed there."""


class _Served:
    """What a reader does, in its process."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress
        self.sources: Recent[PatchSource] = Recent(MAX_SOURCES)
        self.buffers: Recent[BatchBuffer] = Recent(MAX_BUFFERS)

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
        for number in STOPPING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        # held back while this process started
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)
    served = _Served(progress)
    try:
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                pipe.send(served.answer(pipe.recv()))
    finally:
        served.close()
        pipe.close()


def read_patch(source: PatchSource, index: int, size: tuple[int, int]) -> np.ndarray | str:
    """Reads one patch at the height and width that a model takes, (H, W, 3) uint8; its message where that fails."""
    try:
        return fit_image(source[index], size)
    except PatchError as error:
        return " ".join(str(error).split())
