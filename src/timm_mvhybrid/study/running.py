"""The cells of a study, one after the other: pretraining → export → evaluations → result.json → the page."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluate import Progress
from ..runtime.atomic_file import claimed, make_folder, writing
from ..runtime.codec import encode
from ..runtime.errors import OutputError, TimmMVHybridError
from ..runtime.line_file import LineFile
from ..runtime.ranks import Ranks
from .cell_record import FAILURE, CellLog, read_record, write_failure
from .cell_stages import CellStages, Evaluating, Say, Stopped, last_sign, read_reported, stopping
from .checking import check_output, check_study
from .errors import StudyError
from .page import write_page
from .study_file import Cell, Study


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """How a start of a study ended.

    Attributes:
        page: The comparison; None where the start was stopped before or no cell is finished, and on processes other than
            the first.
        done: Cells that are finished, those of earlier starts included.
        failed: Cells that ended with an error → the error.
        skipped: Cells that another process is at.
        stopped_by: The signal that stopped it, its state saved; None if none did.
        seconds: Wall time of this start by what took it: ``training``, ``evaluation``, ``export``, ``other``.
    """

    page: Path | None
    done: tuple[str, ...]
    failed: Mapping[str, str]
    skipped: tuple[str, ...]
    stopped_by: str | None
    seconds: Mapping[str, float]


def run_study(
    study: Study,
    *,
    cells: Sequence[str] = (),
    redo: bool = False,
    evaluating: Evaluating = lambda: nullcontext(Progress()),
    show_progress: bool = True,
    say: Say = lambda message: None,
    note: Say = lambda message: None,
) -> StudyOutcome:
    """Runs the cells of a study that are not finished, and makes its page; every process of torchrun calls it.

    A cell goes on from its last checkpoint. One that fails does not keep the others from being run.

    Args:
        study: The study.
        cells: Names of the cells to run; all by default.
        redo: Start cells anew whose definition changed since they were finished; what they left is moved to replaced/.
        evaluating: Opens what shows the progress of an evaluation.
        show_progress: Whether to show the bar of the training on a terminal.
        say: Called with a sentence where something needs the user, such as a cell that failed; on the first process.
        note: Called with a sentence where the next thing begins or ends; on the first process.

    Raises:
        StudyError: A cell cannot be run, was finished by another definition, or saw other images than the others.
        TimmMVHybridError: Model, data or output cannot be used; the message says which.
    """
    start = time.perf_counter()
    wanted = [study.cell(name) for name in cells]
    checked = check_study(study, Ranks.from_environment().world_size)
    stages = _Start(checked, evaluating=evaluating, show_progress=show_progress, note=note)
    return stages.run(wanted, start=start, redo=redo, say=say)


class _Start(CellStages):
    """One start of a study."""

    def run(self, named: Sequence[Cell], *, start: float, redo: bool, say: Say) -> StudyOutcome:
        study = self.study
        self.say = say if self.ranks.is_first else (lambda message: None)
        wanted = named or study.cells
        self.on_first(lambda: self._prepare(wanted, redo))
        failed: dict[str, str] = {}
        skipped: list[str] = []
        stopped_by: str | None = None
        try:
            with stopping():
                self._evaluate_baselines()
            for cell in self.on_first(lambda: self._in_order(wanted)):
                with ExitStack() as stack:
                    busy = self.on_first(partial(_claim, cell, stack))
                    if busy is not None and named:
                        raise StudyError(busy)
                    if busy is not None:
                        skipped.append(cell.name)
                        self.say(busy)
                        continue
                    # another process may have finished it meanwhile
                    if self.on_first(partial(self.checked.state, cell.name)) == "done":
                        continue
                    try:
                        stopped_by = self._run(cell)
                    except OutputError:
                        # a full disk is full for all of them
                        raise
                    except TimmMVHybridError as error:
                        failed[cell.name] = str(error)
                        self._fail(cell, str(error))
                        if self.ranks.world_size > 1:
                            # the processes may no longer be at the same place
                            raise
                if stopped_by is not None:
                    break
        except Stopped as stop:
            stopped_by = str(stop)
        done = self.on_first(self._done)
        page = None
        if stopped_by is None and done:
            page = self.on_first(lambda: write_page(self.checked, skipped=skipped))
        self.seconds["other"] = time.perf_counter() - start - sum(self.seconds.values())
        outcome = StudyOutcome(
            page=page if self.ranks.is_first else None,
            done=done,
            failed=failed,
            skipped=tuple(skipped),
            stopped_by=stopped_by,
            seconds=dict(self.seconds),
        )
        self._log(
            "end", done=done, failed=failed, skipped=skipped, stopped_by=stopped_by, seconds=self.seconds
        )
        return outcome

    def _done(self) -> tuple[str, ...]:
        """Lists the cells that are finished as the study says."""
        return tuple(
            cell.name
            for cell in self.study.cells
            if read_record(cell.folder) is not None and not self.checked.changes(cell.name)
        )

    def _in_order(self, wanted: Sequence[Cell]) -> list[Cell]:
        """Puts cells that failed last, so that they do not keep the others from being run, and leaves finished ones out."""
        states = {cell.name: self.checked.state(cell.name) for cell in wanted}
        left = [cell for cell in wanted if states[cell.name] != "done"]
        return sorted(left, key=lambda cell: states[cell.name] == "failed")

    def _log(self, event: str, **values: Any) -> None:
        if self.ranks.is_first:
            with LineFile(self.study.output / "study.jsonl") as file:
                line = {"event": event, "time": time.time(), **values}
                file.write(json.dumps(encode(line), default=str, ensure_ascii=False))

    def _prepare(self, wanted: Sequence[Cell], redo: bool) -> None:
        """Makes the output folder, and refuses finished cells of another definition, or moves them away."""
        study = self.study
        check_output(study)
        for cell in wanted:
            changes = self.checked.changes(cell.name)
            if not changes:
                continue
            if not redo:
                raise StudyError(
                    f"{cell.folder}: was finished before {' and '.join(changes)} changed in {study.where}; restore that, choose "
                    "another `output`, or run changed cells anew by `redo=True`, which moves what is there to replaced/"
                )
            target = study.output / "replaced"
            make_folder(target)
            place = next(
                path for number in range(10**6) if not (path := target / f"{cell.name}-{number}").exists()
            )
            with claimed(cell.folder / "result.json"), writing(cell.folder):
                cell.folder.rename(place)
            self.say(f"cell {cell.name} is run anew; what it left is in {place}")
        self._log(
            "start", study=study.name, cells=[cell.name for cell in wanted], processes=self.ranks.world_size
        )

    def _evaluate_baselines(self) -> None:
        """Evaluates baselines once, which also shows that the evaluations can be done, before anything is trained."""
        for task in self.study.tasks:
            if task.baseline is None:
                continue
            folder = self.study.output / "baselines" / task.name
            digest = self.checked.tasks[task.name]

            with ExitStack() as stack:
                if self.on_first(partial(_claim_report, folder, digest, stack)):
                    continue
                with self.timed("evaluation"):
                    cache = self.study.output / "baselines" / "embeddings"
                    options = task.options(task.baseline, cache=cache)
                    self.evaluate(task, options, folder, digest, f"evaluate.{task.name}, baselines")

    def _run(self, cell: Cell) -> str | None:
        """Runs a cell; returns the signal that stopped it, None if it is finished."""
        checked = self.checked.cells[cell.name]
        if not self.ranks.is_first:
            return self.run_stages(checked, None)
        log = CellLog(cell.folder, partial(last_sign, cell))
        with log.stage("cell"):
            start = time.perf_counter()
            stopped = self.run_stages(checked, log)
            if stopped is not None:
                return stopped
            with writing(cell.folder / FAILURE):
                (cell.folder / FAILURE).unlink(missing_ok=True)
            record = self.record(checked, log, time.perf_counter() - start)
            record.write(cell.folder)
        shutil.rmtree(cell.folder / "embeddings", ignore_errors=True)
        self.note(
            f"cell {cell.name} is finished: {record.images_per_second:.4g} images/s, "
            f"{sum(record.seconds.values()):.1f} s"
        )
        self._log("cell", cell=cell.name, seconds=record.seconds)
        return None

    def _fail(self, cell: Cell, message: str) -> None:
        self.say(f"cell {cell.name} failed: {message}")
        self._log("failed", cell=cell.name, message=message)
        if self.ranks.is_first:
            make_folder(cell.folder)
            write_failure(cell.folder, message)


def _claim_report(folder: Path, digest: str, stack: ExitStack) -> bool:
    """Waits until no other process evaluates the same; returns whether it is done."""
    make_folder(folder)
    stack.enter_context(claimed(folder / "results.json", wait=True))
    return read_reported(folder, digest) is not None


def _claim(cell: Cell, stack: ExitStack) -> str | None:
    """Keeps other processes from a cell; returns a sentence where another one is at it."""
    make_folder(cell.folder)
    try:
        stack.enter_context(claimed(cell.folder / "result.json"))
    except OutputError as error:
        return f"cell {cell.name}: another process is at it ({error})"
    return None
