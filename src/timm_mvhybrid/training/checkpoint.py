"""State of a run ↔ folders ``checkpoints/step_<n>``: whole or absent, checked before they are trusted.

A checkpoint is written by torch.distributed.checkpoint into a hidden folder, every file's sha256 into ``files.json``
beside them, and only then the folder gets its name. A process that is killed at any moment leaves the checkpoints
before untouched.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ..runtime.atomic_file import write_file
from ..runtime.digest import file_sha256
from ..runtime.errors import PretrainError, writing
from .checkpoint_write import CheckpointWrite
from .loss_scale import LossScale
from .objective import Objective
from .world import World

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
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}_{number}")
    return candidate


def _write_json(path: Path, values: Any) -> None:
    write_file(path, json.dumps(values, indent=2))
