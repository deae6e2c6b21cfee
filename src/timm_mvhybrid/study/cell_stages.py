"""The stages of one cell, on all processes: pretraining → export → evaluations → its record."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import safe_open

from ..data import open_source
from ..evaluate import Progress, Result, load_backbone
from ..evaluate import embed as embed_patches
from ..export import export
from ..models.loading import WEIGHTS_FILE
from ..pretrain.config import PretrainConfig
from ..report import read_result, write_report
from ..runtime.atomic_file import make_folder, write_file
from ..runtime.codec import encode
from ..runtime.errors import TimmMVHybridError
from ..runtime.ranks import Ranks
from ..training.loop import RunResult, run_training
from ..training.metrics_log import read_lines
from ..training.run_directory import RunDirectory
from ..training.stop_signal import SIGNALS
from ..weights.weights_file import TENSORS_SHA256
from .cell_record import DEFINITION, CellLog, CellRecord, read_record, results_as_json
from .checking import CheckedCell, CheckedStudy
from .errors import StudyError
from .same_batches import WatchedObjective, first_difference, seen_by_run
from .study_file import Cell
from .task_options import StudyTask

CURVES = ("loss/total", "loss/ibot", "loss/dino_global", "rankme")
"""What the page draws over the steps, of the metrics that a run has."""
_MAX_POINTS = 200
Evaluating = Callable[[], AbstractContextManager[Progress]]
Say = Callable[[str], None]


class Stopped(BaseException):
    """A signal came while no training was running, which would have caught it."""


@contextmanager
def stopping() -> Iterator[None]:
    """Ends what is going on when a scheduler asks for it; the embeddings and results that are done are kept.

    Raises:
        Stopped: A signal came.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class CellStages:
    """What a start of a study does with each cell.

    Args:
        checked: The study.
        evaluating: Opens what shows the progress of an evaluation.
        show_progress: Whether to show the bar of the training on a terminal.
        note: Called with a sentence where the next thing begins; on the first process.

    Attributes:
        ranks: The processes.
        seconds: Wall time of this start by what took it.
    """

    def __init__(
        self, checked: CheckedStudy, *, evaluating: Evaluating, show_progress: bool, note: Say
    ) -> None:
        self.checked, self.study = checked, checked.study
        self.evaluating, self.show_progress = evaluating, show_progress
        self.ranks = Ranks.from_environment()
        self.note = note if self.ranks.is_first else (lambda message: None)
        self.seconds = {"training": 0.0, "evaluation": 0.0, "export": 0.0}

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Does something on the first process and tells all of them what came of it; every process calls it."""
        with self.ranks.joined() as ranks:
            return ranks.on_first(action)

    def alone_on_first(self, action: Callable[[], None]) -> None:
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

        self.on_first(settle)

    def run_stages(self, checked: CheckedCell, log: CellLog | None) -> str | None:
        """Trains, exports and evaluates a cell, on all processes."""
        cell = checked.cell
        if read_record(cell.folder) is None:
            with self.timed("training", log, "pretrain"):
                found = self._train(checked)
            if found.stopped_by is not None:
                return found.stopped_by
        with stopping():
            with self.timed("export", log, "export"):
                self.alone_on_first(lambda: _export(cell))
            for task in self.study.tasks:
                with self.timed("evaluation", log, f"evaluate {task.name}"):
                    self._evaluate_cell(cell, task)
        return None

    def _train(self, checked: CheckedCell) -> RunResult:
        cell = checked.cell
        other, expected = self.on_first(lambda: self._seen_by_others(checked))
        self.note(f"cell {cell.name}: pretraining {cell.config.model.name}")
        if torch.cuda.is_available():
            # what earlier cells took is not this one's
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
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
            record = read_record(other.cell.folder)
            # a finished cell's run may have been removed to make room
            seen = seen_by_run(other.cell.config.output) if record is None else dict(record.seen)
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
            return read_reported(folder, digest) is not None

        if self.on_first(is_done):
            return
        model = f"local-dir:{cell.folder / 'export'}"
        bags = None
        if task.patches is not None:
            bags = cell.folder / "bags" / task.name / cell.variant
            self.on_first(lambda: self._embed_slides(task.patches, model, bags))
        options = task.options(model, cache=cell.folder / "embeddings", bags=bags)
        self.evaluate(task, options, folder, digest, f"cell {cell.name}, evaluation {task.name}")

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

    def evaluate(self, task: StudyTask, options: Any, folder: Path, digest: str, what: str) -> None:
        """Evaluates, and writes the report; what it is of is written last, so that it is whole where that is there."""
        self.note(what)
        with self.evaluating() as progress:
            result = task.task.run(options, progress)
        if result is not None:
            write_report(result, folder, overwrite=True)
            write_file(folder / DEFINITION, json.dumps({"definition": digest}) + "\n")

    def record(self, checked: CheckedCell, log: CellLog, so_far: float) -> CellRecord:
        """Puts together what a finished cell leaves; ``so_far`` are the seconds of this start."""
        cell, config = checked.cell, checked.cell.config
        lines = read_lines(RunDirectory(config.output).metrics)
        seconds = log.seconds()
        # the stage that this belongs to has not ended
        total = seconds.pop("cell", 0.0) + so_far
        weights = _weights_sha256(cell)
        results = {}
        for task in self.study.tasks:
            result = read_reported(
                cell.folder / "reports" / task.name, f"{self.checked.tasks[task.name]} {weights}"
            )
            assert result is not None
            results[task.name] = results_as_json(result)
        finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        seconds["other"] = max(total - sum(seconds.values()), 0.0)
        num_starts = log.num_begun("cell")
        before = read_record(cell.folder)
        if before is not None:
            # evaluations were added; the run may have been removed to make room
            return replace(
                before,
                tasks={**before.tasks, **self.checked.tasks},
                results={**before.results, **results},
                seconds=seconds,
                num_starts=num_starts,
                finished=finished,
            )
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
            seconds=seconds,
            num_starts=num_starts,
            curves={
                name: _thinned([[line["step"], line[name]] for line in lines if name in line])
                for name in CURVES
                if any(name in line for line in lines)
            },
            weights_sha256=weights,
            results=results,
            finished=finished,
        )

    @contextmanager
    def timed(self, kind: str, log: CellLog | None = None, stage: str = "") -> Iterator[None]:
        """Adds the time within to this start, and to the log of a cell as one of its stages."""
        start = time.perf_counter()
        try:
            with nullcontext() if log is None else log.stage(stage):
                yield
        finally:
            self.seconds[kind] += time.perf_counter() - start


def _export(cell: Cell) -> None:
    """Exports the teacher, unless an earlier start did: what is there is whole."""
    folder = cell.folder / "export"
    if not folder.exists():
        export(cell.config.output, None, folder)


def _weights_sha256(cell: Cell) -> str:
    """Identifies the exported weights by their values: the file also states which checkpoint it was made of."""
    with safe_open(cell.folder / "export" / WEIGHTS_FILE, "pt") as file:
        return str(file.metadata()[TENSORS_SHA256])


def read_reported(folder: Path, digest: str) -> Result | None:
    """Reads the result of an evaluation that was finished by this definition; None where there is none."""
    try:
        found = json.loads((folder / DEFINITION).read_text(encoding="utf-8"))
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


def last_sign(cell: Cell) -> float:
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
