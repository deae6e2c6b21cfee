"""State of a run ↔ folders ``checkpoints/step_<n>``: whole or absent, checked before they are trusted.

A checkpoint is written by torch.distributed.checkpoint into a hidden folder, every file's sha256 into ``files.json``
beside them, and only then the folder gets its name. A process that is killed at any moment leaves the checkpoints
before untouched.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ..runtime.atomic_file import write_file, writing
from ..runtime.digest import file_sha256
from ..runtime.errors import OutputError, PretrainError, check_space, free_bytes
from .loss_scale import LossScale
from .objective import Objective
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


FILES = "files.json"
BEST = "best.json"
_RESERVED = {"optimizer", "loss_scale", "step"}
_NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that changes while a run goes on; schedules, samples and random numbers follow from the step.

    Attributes:
        objective: What is learned.
        optimizer: The optimiser of ``objective.trained``.
        loss_scale: The loss scale.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale

    def state_dict(self) -> dict[str, Any]:
        """Names every tensor: the objective's as it names them, beside ``optimizer.…`` and ``loss_scale.…``."""
        own = self.objective.state_dict()
        if taken := own.keys() & _RESERVED:
            raise PretrainError(
                f"{type(self.objective).__name__} names {', '.join(sorted(taken))} in its state_dict, which the loop "
                "keeps itself; choose other names"
            )
        return {
            **own,
            "optimizer": get_optimizer_state_dict(self.objective.trained, self.optimizer),
            "loss_scale": self.loss_scale.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state."""
        self.objective.load_state_dict(state)
        set_optimizer_state_dict(self.objective.trained, self.optimizer, state["optimizer"])
        self.loss_scale.load_state_dict(state["loss_scale"])


class Checkpointer:
    """Saves and finds the checkpoints of a run; every process makes the same calls.

    Args:
        folder: The run's ``checkpoints``.
        world: The processes.
        keep: Newest checkpoints to keep; 0 keeps all.
        asynchronous: Whether to write while training goes on.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, asynchronous: bool) -> None:
        self.folder = folder
        self.world = world
        self.keep = keep
        self.asynchronous = asynchronous
        self._write: CheckpointWrite | None = None

    def save(self, step: int, state: TrainState, *, score: float | None = None) -> None:
        """Saves the state after a step; waits for the save before it.

        Raises:
            TimmMVHybridError: This save, or the one before, failed; the message names the checkpoint.
        """
        self.wait()
        final = self.folder / step_name(step)
        if final.is_dir():
            if score is not None:
                self.world.on_first(lambda: self._mark_best(step, score))
            return
        values = {**state.state_dict(), **state.objective.facts(), "step": step}
        self._write = CheckpointWrite(
            values,
            final,
            self.world,
            publish=partial(self._publish, final, step, score),
            asynchronous=self.asynchronous,
        )
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Waits until the save in the background is done.

        Raises:
            TimmMVHybridError: It failed.
        """
        write, self._write = self._write, None
        if write is not None:
            write.wait()

    def close(self) -> None:
        """Lets a save in the background end, for a process that ends by an error of its own."""
        if self._write is not None:
            self._write.join()

    def load_newest(self, state: TrainState) -> tuple[int, list[str]]:
        """Takes up the newest checkpoint that is whole.

        Returns:
            Number of finished steps, 0 where there is none; and a message for each damaged checkpoint passed over.

        Raises:
            PretrainError: There are checkpoints, but none is whole.
        """
        step, messages = self.world.on_first(self._choose)
        if step == 0:
            if messages:
                raise PretrainError(
                    f"{self.folder}: no checkpoint is whole ({'; '.join(messages)}); copy one there, or move the folder "
                    "away to start anew"
                )
            return 0, messages
        values = {**state.state_dict(), "step": 0}
        dcp.load(
            values,
            checkpoint_id=self.folder / step_name(step),
            process_group=self.world.checkpoint_group,
        )
        state.load_state_dict(values)
        return int(values["step"]), messages

    def _choose(self) -> tuple[int, list[str]]:
        for leftover in self.folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        messages: list[str] = []
        for step in sorted(finished_steps(self.folder), reverse=True):
            problem = find_damage(self.folder / step_name(step))
            if problem is None:
                return step, messages
            # moved aside, so that the run can save this step again, and kept for whoever wants to look
            with writing(self.folder / step_name(step)):
                (self.folder / step_name(step)).replace(
                    _free_name(self.folder / f"damaged_{step_name(step)}")
                )
            messages.append(problem)
        return 0, messages

    def _publish(self, final: Path, step: int, score: float | None, temporary: Path) -> None:
        """Writes down what the files must be, and names the folder."""
        sums = {file.name: file_sha256(file) for file in sorted(temporary.iterdir())}
        _write_json(temporary / FILES, sums)
        with writing(final):
            temporary.replace(final)
        if score is not None:
            self._mark_best(step, score)
        self._prune(step)

    def _mark_best(self, step: int, score: float) -> None:
        _write_json(self.folder / BEST, {"step": step, "score": score})

    def _prune(self, newest: int) -> None:
        if self.keep == 0:
            return
        steps = sorted(step for step in finished_steps(self.folder) if step <= newest)
        best = best_checkpoint(self.folder)
        for step in steps[: -self.keep]:
            if best is not None and step == best[0]:
                continue
            # renamed first: a deletion that is killed must not leave half a folder under a good name
            doomed = self.folder / f".{step_name(step)}.old.tmp"
            with writing(doomed):
                (self.folder / step_name(step)).replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def step_name(step: int) -> str:
    """Names the folder of a checkpoint."""
    return f"step_{step:08d}"


def finished_steps(folder: Path) -> list[int]:
    """Lists the checkpoints that got their name."""
    return [int(match[1]) for path in folder.glob("step_*") if (match := _NAME.fullmatch(path.name))]


def best_checkpoint(folder: Path) -> tuple[int, float] | None:
    """Finds the checkpoint with the best probe.

    Returns:
        Its step and score; None where no probe ran.
    """
    try:
        values = json.loads((folder / BEST).read_text(encoding="utf-8"))
        return int(values["step"]), float(values["score"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PretrainError(f"{folder / BEST}: not readable ({error}); remove it") from error


def find_damage(checkpoint: Path) -> str | None:
    """Compares a checkpoint's files with what was written.

    Returns:
        What is wrong, with the file's name; None if nothing is.
    """
    try:
        sums = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
        for name, wanted in sums.items():
            if file_sha256(checkpoint / name) != wanted:
                return f"{checkpoint / name}: damaged, its sha256 is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{checkpoint}: damaged ({error})"
    return None


def _free_name(path: Path) -> Path:
    others = (path.with_name(f"{path.name}_{number}") for number in count(2))
    return next(candidate for candidate in chain([path], others) if not candidate.exists())


def _write_json(path: Path, values: Any) -> None:
    write_file(path, json.dumps(values, indent=2))
