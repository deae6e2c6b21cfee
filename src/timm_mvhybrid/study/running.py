"""The cells of a study, one after the other: pretraining → export → evaluations → result.json → the page."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import safe_open

from ..data import open_source
from ..evaluate import Progress, Result, load_backbone
from ..evaluate import embed as embed_patches
from ..export import export
from ..models.loading import WEIGHTS_FILE
from ..pretrain.config import PretrainConfig
from ..report import read_result, write_report
from ..runtime.atomic_file import claimed, make_folder, write_file, writing
from ..runtime.codec import encode
from ..runtime.errors import OutputError, TimmMVHybridError
from ..runtime.line_file import LineFile
from ..runtime.ranks import Ranks
from ..training.loop import RunResult, run_training
from ..training.metrics_log import read_lines
from ..training.run_directory import RunDirectory
from ..training.stop_signal import SIGNALS
from ..weights.weights_file import TENSORS_SHA256
from .cell_record import (
    FAILURE,
    CellLog,
    CellRecord,
    read_record,
    results_as_json,
    write_failure,
)
from .checking import CheckedCell, check_output, check_study
from .errors import StudyError
from .page import write_page
from .same_batches import WatchedObjective, first_difference, seen_by_run
from .study_file import Cell, Study
from .task_options import StudyTask

CURVES = ("loss/total", "loss/ibot", "loss/dino_global", "rankme")
"""What the page draws over the steps, of the metrics that a run has."""
_MAX_POINTS = 200
_DEFINITION = "study_task.json"
Evaluating = Callable[[], AbstractContextManager[Progress]]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """How a start of a study ended.

    Attributes:
        page: The comparison; None where the start was stopped before, and on processes other than the first.
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


class _Stopped(BaseException):
    """A signal came while no training was running, which would have caught it."""


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
    return _Start(study, redo, evaluating, show_progress, say, note).run(cells)


class _Start:
    """One start of a study."""

    def __init__(
        self,
        study: Study,
        redo: bool,
        evaluating: Evaluating,
        show_progress: bool,
        say: Say,
        note: Say,
    ) -> None:
        self.study, self.redo, self.evaluating, self.show_progress = study, redo, evaluating, show_progress
        self.ranks = Ranks.from_environment()
        self.say, self.note = (one if self.ranks.is_first else (lambda message: None) for one in (say, note))
        self.seconds = {"training": 0.0, "evaluation": 0.0, "export": 0.0}
        self.start = time.perf_counter()

    def run(self, names: Sequence[str]) -> StudyOutcome:
        study = self.study
        wanted = [study.cell(name) for name in names] or list(study.cells)
        self.checked = check_study(study, self.ranks.world_size)
        self._on_first(lambda: self._prepare(wanted))
        failed: dict[str, str] = {}
        skipped: list[str] = []
        stopped_by: str | None = None
        try:
            with _stopping():
                self._evaluate_baselines()
            for cell in self._on_first(lambda: self._in_order(wanted)):
                with ExitStack() as stack:
                    busy = self._on_first(partial(_claim, cell, stack))
                    if busy is not None and names:
                        raise StudyError(busy)
                    if busy is not None:
                        skipped.append(cell.name)
                        self.say(busy)
                        continue
                    # another process may have finished it meanwhile
                    if self._on_first(partial(self.checked.state, cell.name)) == "done":
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
        except _Stopped as stop:
            stopped_by = str(stop)
        page = None
        if stopped_by is None:
            page = self._on_first(lambda: write_page(self.checked, skipped=skipped))
        self.seconds["other"] = time.perf_counter() - self.start - sum(self.seconds.values())
        done = tuple(
            cell.name
            for cell in study.cells
            if read_record(cell.folder) is not None and not self.checked.changes(cell.name)
        )
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

    def _in_order(self, wanted: Sequence[Cell]) -> list[Cell]:
        """Puts cells that failed last, so that they do not keep the others from being run, and leaves finished ones out."""
        states = {cell.name: self.checked.state(cell.name) for cell in wanted}
        left = [cell for cell in wanted if states[cell.name] != "done"]
        return sorted(left, key=lambda cell: states[cell.name] == "failed")

    def _on_first(self, action: Callable[[], Any]) -> Any:
        with self.ranks.joined() as ranks:
            return ranks.on_first(action)

    def _alone_on_first(self, action: Callable[[], None]) -> None:
        """Does something on the first process while no group is open: reading a sharded checkpoint would wait for all."""
        failure: TimmMVHybridError | None = None
        if self.ranks.is_first:
            try:
                action()
            except TimmMVHybridError as error:
                failure = error

        def settle() -> None:
            if failure is not None:
                raise failure

        self._on_first(settle)

    def _log(self, event: str, **values: Any) -> None:
        if self.ranks.is_first:
            with LineFile(self.study.output / "study.jsonl") as file:
                line = {"event": event, "time": time.time(), **values}
                file.write(json.dumps(encode(line), default=str, ensure_ascii=False))

    def _prepare(self, wanted: Sequence[Cell]) -> None:
        """Makes the output folder, and refuses finished cells of another definition, or moves them away."""
        study = self.study
        check_output(study)
        for cell in wanted:
            changes = self.checked.changes(cell.name)
            if not changes:
                continue
            if not self.redo:
                raise StudyError(
                    f"{cell.folder}: was finished before {' and '.join(changes)} changed in {study.where}; restore that, choose "
                    "another `output`, or run changed cells anew by `redo=True`, which moves what is there to replaced/"
                )
            target = study.output / "replaced"
            make_folder(target)
            place = next(
                path for number in range(10**6) if not (path := target / f"{cell.name}-{number}").exists()
            )
            with claimed(cell.folder), writing(cell.folder):
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

            def is_done(folder: Path = folder, digest: str = digest) -> bool:
                make_folder(folder)
                return _reported(folder, digest) is not None

            if self._on_first(is_done):
                continue
            with self._timed("evaluation"):
                options = task.options(task.baseline, cache=self.study.output / "baselines" / "embeddings")
                self._evaluate(task, options, folder, digest, f"evaluate.{task.name}, baselines")

    def _run(self, cell: Cell) -> str | None:
        """Runs a cell; returns the signal that stopped it, None if it is finished."""
        checked = self.checked.cells[cell.name]
        if not self.ranks.is_first:
            return self._stages(checked, None)
        log = CellLog(cell.folder, partial(_last_sign, cell))
        with log.stage("cell"):
            start = time.perf_counter()
            stopped = self._stages(checked, log)
            if stopped is not None:
                return stopped
            with writing(cell.folder / FAILURE):
                (cell.folder / FAILURE).unlink(missing_ok=True)
            record = self._record(checked, log, time.perf_counter() - start)
            record.write(cell.folder)
        shutil.rmtree(cell.folder / "embeddings", ignore_errors=True)
        self.note(
            f"cell {cell.name} is finished: {record.images_per_second:.4g} images/s, "
            f"{sum(record.seconds.values()):.1f} s"
        )
        self._log("cell", cell=cell.name, seconds=record.seconds)
        return None

    def _stages(self, checked: CheckedCell, log: CellLog | None) -> str | None:
        """Trains, exports and evaluates a cell, on all processes."""
        cell = checked.cell
        if read_record(cell.folder) is None:
            with self._timed("training", log, "pretrain"):
                found = self._train(checked)
            if found.stopped_by is not None:
                return found.stopped_by
        with _stopping():
            with self._timed("export", log, "export"):
                self._alone_on_first(lambda: _export(cell))
            for task in self.study.tasks:
                with self._timed("evaluation", log, f"evaluate {task.name}"):
                    self._evaluate_cell(cell, task)
        return None

    def _train(self, checked: CheckedCell) -> RunResult:
        cell = checked.cell
        other, expected = self._on_first(lambda: self._seen_by_others(checked))
        self.note(f"cell {cell.name}: pretraining {cell.config.model.name}")
        return run_training(
            cell.config,
            partial(WatchedObjective, cell.config, expected=expected, other=other),
            show_progress=self.show_progress,
        )

    def _seen_by_others(self, checked: CheckedCell) -> tuple[str, dict[int, int]]:
        """Finds what a cell that must see the same has logged, and compares what this one did before."""
        own = seen_by_run(checked.cell.config.output)
        for other in self.checked.cells.values():
            if other is checked or other.data_group != checked.data_group:
                continue
            seen = seen_by_run(other.cell.config.output)
            if not seen:
                continue
            step = first_difference(own, seen)
            if step is not None:
                raise StudyError(
                    f"cells {checked.cell.name} and {other.cell.name} have the same data and seed, and saw different images or "
                    f"crops at step {step}; choose another `output`"
                )
            return other.cell.name, seen
        return "", {}

    def _evaluate_cell(self, cell: Cell, task: StudyTask) -> None:
        folder = cell.folder / "reports" / task.name
        weights = _weights_sha256(cell)
        digest = f"{self.checked.tasks[task.name]} {weights}"

        def is_done() -> bool:
            make_folder(folder)
            return _reported(folder, digest) is not None

        if self._on_first(is_done):
            return
        model = f"local-dir:{cell.folder / 'export'}"
        bags = None
        if task.patches is not None:
            bags = cell.folder / "bags" / task.name / cell.variant
            self._on_first(lambda: self._embed_slides(task.patches, model, bags))
        options = task.options(model, cache=cell.folder / "embeddings", bags=bags)
        self._evaluate(task, options, folder, digest, f"cell {cell.name}, evaluation {task.name}")

    def _embed_slides(self, patches: Path | None, model: str, bags: Path | None) -> None:
        """Embeds what each slide holds, for tasks on slides; files that are there are whole."""
        assert patches is not None
        assert bags is not None
        make_folder(bags)
        backbone = load_backbone(model, pretrained=True)
        for path in sorted(patches.iterdir()):
            output = bags / f"{path.stem}.h5"
            if not path.name.startswith(".") and not output.exists():
                embed_patches(open_source(path), backbone, output)

    def _evaluate(self, task: StudyTask, options: Any, folder: Path, digest: str, what: str) -> None:
        """Evaluates, and writes the report; what it is of is written last, so that it is whole where that is there."""
        self.note(what)
        with self.evaluating() as progress:
            result = task.task.run(options, progress)
        if result is not None:
            write_report(result, folder, overwrite=True)
            write_file(folder / _DEFINITION, json.dumps({"definition": digest}) + "\n")

    def _record(self, checked: CheckedCell, log: CellLog, so_far: float) -> CellRecord:
        cell, config = checked.cell, checked.cell.config
        lines = read_lines(RunDirectory(config.output).metrics)
        seconds = log.seconds()
        # the stage that this belongs to has not ended
        total = seconds.pop("cell", 0.0) + so_far
        weights = _weights_sha256(cell)
        results = {}
        for task in self.study.tasks:
            result = _reported(
                cell.folder / "reports" / task.name, f"{self.checked.tasks[task.name]} {weights}"
            )
            assert result is not None
            results[task.name] = results_as_json(result)
        return CellRecord(
            cell=cell.name,
            variant=cell.variant,
            seed=cell.seed,
            definition=checked.definition,
            tasks=dict(self.checked.tasks),
            settings=_public(config),
            num_parameters=checked.num_parameters,
            num_samples=checked.num_samples,
            data_fingerprint=checked.data_fingerprint,
            data_group=checked.data_group,
            seen=tuple(sorted(seen_by_run(config.output).items())),
            num_images=config.num_steps * config.batch_size,
            training_seconds=_training_seconds(lines, config.batch_size),
            seconds={**seconds, "other": max(total - sum(seconds.values()), 0.0)},
            num_starts=log.num_begun("cell"),
            curves={
                name: _thinned([[line["step"], line[name]] for line in lines if name in line])
                for name in CURVES
                if any(name in line for line in lines)
            },
            weights_sha256=weights,
            results=results,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _fail(self, cell: Cell, message: str) -> None:
        self.say(f"cell {cell.name} failed: {message}")
        self._log("failed", cell=cell.name, message=message)
        if self.ranks.is_first:
            make_folder(cell.folder)
            write_failure(cell.folder, message)

    @contextmanager
    def _timed(self, kind: str, log: CellLog | None = None, stage: str = "") -> Iterator[None]:
        start = time.perf_counter()
        try:
            with nullcontext() if log is None else log.stage(stage):
                yield
        finally:
            self.seconds[kind] += time.perf_counter() - start


def _claim(cell: Cell, stack: ExitStack) -> str | None:
    """Keeps other processes from a cell; returns a sentence where another one is at it."""
    make_folder(cell.folder)
    try:
        stack.enter_context(claimed(cell.folder / "result.json"))
    except OutputError as error:
        return f"cell {cell.name}: another process is at it ({error})"
    return None


@contextmanager
def _stopping() -> Iterator[None]:
    """Ends what is going on when a scheduler asks for it; the embeddings and results that are done are kept.

    Raises:
        _Stopped: A signal came.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export(cell: Cell) -> None:
    """Exports the teacher, unless an earlier start did: what is there is whole."""
    folder = cell.folder / "export"
    if not folder.exists():
        export(cell.config.output, None, folder)


def _weights_sha256(cell: Cell) -> str:
    """Identifies the exported weights by their values: the file also states which checkpoint it was made of."""
    with safe_open(cell.folder / "export" / WEIGHTS_FILE, "pt") as file:
        return str(file.metadata()[TENSORS_SHA256])


def _reported(folder: Path, digest: str) -> Result | None:
    """Reads the result of an evaluation that was finished by this definition; None where there is none."""
    try:
        found = json.loads((folder / _DEFINITION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read_result(folder) if found.get("definition") == digest else None


def _public(config: PretrainConfig) -> dict[str, Any]:
    """Encodes a configuration without the folders of this machine; what data and weights are, digests say."""
    data = replace(
        config.data,
        sources=tuple(Path(source).name for source in config.data.sources),
        slides=None if config.data.slides is None else Path(config.data.slides).name,
    )
    encoded: dict[str, Any] = encode(replace(config, data=data), path=lambda path: path.name)
    return encoded


def _last_sign(cell: Cell) -> float:
    """Finds when an earlier start of a cell last wrote something, in seconds since the epoch."""
    signs = [
        path.stat().st_mtime
        for path in (RunDirectory(cell.config.output).metrics, *cell.folder.glob("embeddings/*/*"))
        if path.exists()
    ]
    return max(signs, default=0.0)


def _training_seconds(lines: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Adds up the time of the steps, from the rates of a log's lines."""
    total, before = 0.0, 0
    for line in lines:
        rate = line.get("throughput/images_per_second")
        if rate:
            total += (line["step"] - before) * batch_size / rate
            before = line["step"]
    return total


def _thinned(points: list[Any]) -> list[Any]:
    """Keeps at most so many points, the first and the last among them."""
    every = -(-len(points) // _MAX_POINTS)
    return points[::every] + ([] if (len(points) - 1) % max(every, 1) == 0 else points[-1:])
