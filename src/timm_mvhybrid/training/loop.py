"""The loop: configuration and objective → a run's folder with logs, checkpoints and weights.

What is learned stands in the objective, one step in ``step``, what is saved in ``checkpoint``. Where a run goes on, both
configurations are compared first: what changed between its starts, and whether it may go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save
from torch import Tensor

from ..runtime.atomic_file import claimed, make_folder, write_file
from ..runtime.codec import encode
from ..runtime.errors import PretrainError, TimmMVHybridError
from .checkpoint import Checkpointer, TrainState, best_checkpoint
from .config import RunConfig
from .loss_scale import LossScale
from .metrics_log import MetricsLog
from .objective import Evaluation, Objective
from .optimizer import make_adamw
from .progress import TrainingProgress
from .run_directory import RunDirectory
from .run_report import RunReport
from .step import NonFiniteError, TrainStep
from .stop_signal import StopSignal
from .throughput import CollectivesTime, Throughput, watch_collectives
from .world import World, join_world


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any], recipe: type[RunConfig]) -> list[str]:
    """Compares what is learned in two configurations.

    Returns:
        Name, earlier and new value of each difference, as text.
    """
    old, new = decisive_settings(before, recipe), decisive_settings(now, recipe)
    return [
        f"`{name}` was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def decisive_settings(config: Mapping[str, Any], recipe: type[RunConfig]) -> dict[str, Any]:
    """Takes from an encoded configuration what decides what is learned.

    Returns:
        Dotted name → value.
    """
    return {name: value for name, value in _leaves(config) if not _within(name, recipe.free)}


def check_recipe(
    before: Mapping[str, Any], now: Mapping[str, Any], recipe: type[RunConfig], *, allow_changes: bool
) -> list[str]:
    """Decides whether a run may go on.

    Args:
        before: Configuration of the run so far.
        now: Configuration of this start.
        recipe: The kind of configuration, which knows what is free to change and what decides the architecture.
        allow_changes: Whether the recipe may change; the architecture never may.

    Raises:
        PretrainError: The recipe changed and may not, or the architecture did.
    """
    changes = find_changes(before, now, recipe)
    architecture = [
        change for change in changes if _within(change.split()[0].strip("`"), recipe.architecture)
    ]
    if architecture:
        raise PretrainError(
            f"the run that is there has another architecture ({'; '.join(architecture)}); choose another `output`, and "
            "start from its weights by `model.weights` if they fit"
        )
    if changes and not allow_changes:
        raise PretrainError(
            f"the run that is there has another recipe ({'; '.join(changes)}); restore it, allow the change by "
            "`allow_changes=True`, or choose another `output`"
        )
    return changes


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        # arguments of the model are one value: which are there is part of it
        if isinstance(value, Mapping) and f"{prefix}{name}" != "model.arguments":
            leaves += _leaves(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


Resume = Literal["auto", "never", "must"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: Number of finished steps.
        stopped_by: The signal that stopped it, its state saved; None if it is finished.
        weights: The file of weights; None unless it is finished, and where its objective writes none.
    """

    step: int
    stopped_by: str | None = None
    weights: Path | None = None


def run_training(
    config: RunConfig,
    build: Callable[[World], Objective],
    *,
    resume: Resume = "auto",
    allow_changes: bool = False,
    show_progress: bool = True,
) -> RunResult:
    """Trains an objective, or goes on where its run stopped; every process of torchrun calls it.

    On the same number of processes, devices and versions a resumed run equals one that never stopped, bit for bit.

    Args:
        config: The run.
        build: Makes the objective, the same one at each start, laid out over the processes.
        resume: "auto" goes on with what is there, "never" refuses a folder that holds a run, "must" one that holds
            none.
        allow_changes: Whether a resumed run may have another recipe than it had.
        show_progress: Whether to show a bar on a terminal.

    Raises:
        PretrainError: The run cannot start or go on; the message names the cause and the remedy.
        DataError: Samples cannot be read.
    """
    with join_world(config.parallel) as world:
        # before anything is written, because most mistakes show here
        config.images_per_pass(world.world_size)
        return _Run(config, world, build(world)).train(resume, allow_changes, show_progress)


class _Run:
    def __init__(self, config: RunConfig, world: World, objective: Objective) -> None:
        self.config = config
        self.world = world
        self.objective = objective
        self.directory = RunDirectory(config.output)
        self.state = TrainState(
            objective=objective,
            optimizer=make_adamw(objective.parameter_groups(), betas=config.optimizer.betas),
            loss_scale=LossScale(enabled=config.parallel.precision == "fp16"),
        )
        self.checkpoints = Checkpointer(
            self.directory.checkpoints,
            world,
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
        )

    def train(self, resume: Resume, allow_changes: bool, show_progress: bool) -> RunResult:
        config, world = self.config, self.world
        with ExitStack() as stack:
            changes = world.on_first(lambda: self._claim(stack, resume, allow_changes))
            stack.callback(self.checkpoints.close)
            start, damaged = self.checkpoints.load_newest(self.state)
            best = world.on_first(lambda: best_checkpoint(self.directory.checkpoints))
            self.best = None if best is None else best[1]
            progress = stack.enter_context(
                TrainingProgress(
                    config.num_steps,
                    name=self.objective.name,
                    start_step=start,
                    enabled=world.is_first and show_progress,
                )
            )
            stop = stack.enter_context(StopSignal())
            self.log = None
            if world.is_first:
                self.log = stack.enter_context(
                    MetricsLog(self.directory, tensorboard=config.monitor.tensorboard, resume_step=start)
                )
            self.report = RunReport(config, world, self.objective, progress, self.log)
            for change in changes:
                self.report.warn(f"the recipe changed: {change}")
            for problem in damaged:
                self.report.warn(f"{problem}; an earlier one is taken")
            if start:
                progress.say(f"resumed after step {start} of {config.num_steps}")
            else:
                for warning in self.objective.warnings():
                    self.report.warn(warning)
                    if self.log is not None:
                        self.log.write(0, event="warning", message=warning)
                baseline = self.objective.baseline()
                if baseline is not None and self.log is not None:
                    self.log.write(0, probe=baseline.scores)
            step = self._steps(start, stop)
            self.checkpoints.save(step, self.state)
            self.checkpoints.wait()
            if step < config.num_steps:
                progress.say(
                    f"stopped by {stop.name or 'a signal'} after step {step}, saved; start again to go on"
                )
                return RunResult(step=step, stopped_by=stop.name or "SIGTERM")
            return RunResult(step=step, weights=self.objective.write_weights(self.directory.path))

    def _claim(self, stack: ExitStack, resume: Resume, allow_changes: bool) -> list[str]:
        """Makes the run's folder, or checks that the run in it is this one, and keeps others from it."""
        record = self._record()
        before = self.directory.read_config() if self.directory.holds_run() else None
        changes: list[str] = []
        if before is None and resume == "must":
            raise PretrainError(
                f"{self.directory.path}: holds no run to resume; start one with `resume='auto'`"
            )
        if before is not None and resume != "never":
            changes = check_recipe(before, record, type(self.config), allow_changes=allow_changes)
        make_folder(self.directory.path)
        stack.enter_context(claimed(self.directory.config))
        self.directory.create(record, resume=resume != "never")
        return changes

    def _record(self) -> dict[str, Any]:
        """Lays out what ``config.json`` holds: the configuration, and what it amounts to on these data."""
        config, objective = self.config, self.objective
        return {
            **encode(config),
            "resolved": {
                "num_samples": objective.num_samples,
                "data_fingerprint": objective.data_fingerprint,
                "peak_learning_rate": config.peak_learning_rate,
                "num_epochs": config.num_steps * config.batch_size / objective.num_samples,
                **encode(objective.resolved()),
            },
        }

    def _steps(self, start: int, stop: StopSignal) -> int:
        """Runs from one step to the last, or to a signal; returns the number of finished steps."""
        config, world = self.config, self.world
        train_step = TrainStep(config, world, self.state)
        throughput = Throughput(world.device)
        # closed by whatever ends the loop, because its workers end with it
        with closing(self.objective.batches(start * config.parallel.accumulate)) as batches:
            for step in range(start, config.num_steps):
                try:
                    with self._watch_collectives(step) as collectives:
                        result = train_step(step, self.report.watch(step, batches), throughput)
                except NonFiniteError as error:
                    raise PretrainError(
                        f"{error}; {self._save_failure(step, error)}; start again from an earlier checkpoint with a lower "
                        "`optimizer.base_learning_rate`, or with `parallel.precision='fp32'`"
                    ) from error
                throughput.count(config.batch_size)
                self.report.collectives(step + 1, collectives)
                self.report.step(step + 1, result, throughput)
                with throughput.measure("communication"):
                    stopping = world.any(stop.name is not None)
                self._evaluate_and_save(step + 1)
                if stopping:
                    return step + 1
        return config.num_steps

    def _watch_collectives(self, step: int) -> AbstractContextManager[CollectivesTime]:
        """Profiles a step if it is due."""
        every = self.config.monitor.collectives_every_steps
        if self.world.world_size > 1 and every and step % every == every - 1:
            return watch_collectives(self.world.device)
        return nullcontext(CollectivesTime())

    def _evaluate_and_save(self, done: int) -> None:
        evaluation = self.objective.evaluate(done)
        score = None if evaluation is None else self._best_score(done, evaluation)
        if done % self.config.checkpoint.every_steps == 0 or score is not None:
            self.checkpoints.save(done, self.state, score=score)

    def _best_score(self, done: int, evaluation: Evaluation) -> float | None:
        """Writes down an evaluation; returns its first score if it is the best of the run."""
        self._record_evaluation(done, evaluation)
        score = next(iter(evaluation.scores.values()))
        if self.best is not None and score <= self.best:
            return None
        self.best = score
        return score

    def _record_evaluation(self, done: int, evaluation: Evaluation) -> None:
        if self.log is None:
            return
        self.log.write(done, probe=evaluation.scores)
        for metric in dict.fromkeys([next(iter(evaluation.scores)), *evaluation.recorded]):
            self.directory.add_evaluation(
                metric=metric,
                value=evaluation.scores[metric],
                dataset=evaluation.dataset,
                protocol=evaluation.protocol,
            )

    def _save_failure(self, step: int, error: NonFiniteError) -> str:
        """Keeps what led to numbers that are not finite, out of the way of what is resumed; says where."""
        folder = self.directory.path / "failures" / f"step_{step:08d}_{int(time.time())}"
        folder = self.world.from_first(folder)
        saver = Checkpointer(folder, self.world, keep=0, asynchronous=False)
        tensors = {
            f"{number}.{name}": value.cpu().contiguous()
            for number, batch in enumerate(error.batches)
            for name, value in _tensors_of(batch).items()
        }
        try:
            self.checkpoints.wait()
            saver.save(step, self.state)
            write_file(folder / f"batches_rank{self.world.rank}.safetensors", save(tensors))
        except TimmMVHybridError as problem:
            return f"the state before it and its batches could not be kept: {problem}"
        return f"the state before it and its batches are in {folder}"


def _tensors_of(batch: Any) -> dict[str, Tensor]:
    """Names the tensors of a batch: an object's or a mapping's by their names, a sequence's by their numbers."""
    if isinstance(batch, Tensor):
        return {"0": batch}
    if isinstance(batch, Mapping):
        items = batch
    elif isinstance(batch, list | tuple):
        items = dict(enumerate(batch))
    else:
        items = getattr(batch, "__dict__", {})
    return {str(name): value for name, value in items.items() if isinstance(value, Tensor)}
