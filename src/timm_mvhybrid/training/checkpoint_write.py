"""One checkpoint on its way to the disk: a hidden folder, written by torch, then its name; or nothing, and one sentence."""

from __future__ import annotations

import errno
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor

from ..runtime.errors import OutputError, check_space, free_bytes, writing
from .world import World


class CheckpointWrite:
    """Starts to write a checkpoint; every process makes the same calls.

    Args:
        values: What to save.
        final: The checkpoint's folder, which gets its name when all is written.
        world: The processes.
        publish: Called on the first process with the hidden folder when all is written; gives it its name.
        asynchronous: Whether to write while training goes on.

    Raises:
        TimmMVHybridError: There is no room for it.
    """

    def __init__(
        self,
        values: dict[str, Any],
        final: Path,
        world: World,
        *,
        publish: Callable[[Path], None],
        asynchronous: bool,
    ) -> None:
        self.final = final
        self.temporary = final.with_name(f".{final.name}.tmp")
        self.world = world
        self.num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(values))
        self._publish = publish
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        world.on_first(self._make_folder)
        if not asynchronous:
            self._end(lambda: dcp.save(values, **self._place))
            return
        future = _async_save(_snapshot(values), **self._place)
        # not one that keeps the process alive, because the process may have to end while others are gone
        self._thread = threading.Thread(target=self._end, args=(future.result,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until it is written, everywhere.

        Raises:
            TimmMVHybridError: It failed, here or elsewhere.
        """
        self.join()
        causes = self.world.gather(None if self._failure is None else _cause(self._failure))
        first = next((cause for cause in causes if cause is not None), None)
        if first is not None:
            self.world.on_first(lambda: self._give_up(*first))

    def join(self) -> None:
        """Waits until this process's part is written, or has failed."""
        if self._thread is not None:
            self._thread.join()

    @property
    def _place(self) -> dict[str, Any]:
        return {"checkpoint_id": self.temporary, "process_group": self.world.checkpoint_group}

    def _make_folder(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        # torch's writers do not always say that it was the disk
        check_space(self.final, self.num_bytes)
        with writing(self.final):
            self.temporary.mkdir(parents=True)

    def _end(self, write: Callable[[], Any]) -> None:
        try:
            # of this process's part and, as the first one coordinates, there of everyone's
            write()
            if self.world.is_first:
                self._publish(self.temporary)
        except Exception as error:
            self._failure = error

    def _give_up(self, number: int | None, reason: str) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        free = free_bytes(self.final)
        if number is None and free is not None and free < self.num_bytes:
            number, reason = errno.ENOSPC, "No space left on device"
        raise OutputError(
            f"{OutputError.of(self.final, OSError(number or 0, reason), self.num_bytes)}; the checkpoints before are whole"
        )


def _cause(failure: BaseException) -> tuple[int | None, str]:
    """Finds what the operating system said, or what stands first: of what several processes report, of one."""
    failures = [found for found, _ in getattr(failure, "failures", {}).values()]
    error: BaseException | None = failures[0] if failures else failure
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno, error.strerror or reason
        error = error.__cause__ or error.__context__
    return None, reason


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yields every tensor; a sharded one counts as a whole, and once, as it is written."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(value)


def _snapshot(values: Any) -> Any:
    """Copies what training is about to overwrite; tensors of other devices are copied by the save itself."""
    if isinstance(values, Tensor):
        return values.detach().clone() if values.device.type == "cpu" else values
    if isinstance(values, Mapping):
        return {key: _snapshot(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_snapshot(value) for value in values)
    return values


def _async_save(values: dict[str, Any], **place: Any) -> Any:
    with warnings.catch_warnings():
        # it says that its interface may still change
        warnings.filterwarnings("ignore", category=FutureWarning)
        return dcp.async_save(values, **place)
