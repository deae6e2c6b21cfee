"""The loop: configuration → a run's folder with logs, checkpoints and the teacher's weights.

Everything it does stands elsewhere: crops in `loader`, one step in `step`, what is saved in `checkpoint`.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save

from ..data.manifest import open_samples
from ..runtime.atomic_file import write_file
from ..runtime.claim import claimed
from ..runtime.errors import PretrainError, TimmMVHybridError, writing
from ..ssl.augmentation import DeviceAugmentation
from ..ssl.loader import make_loader
from ..ssl.masking import MaskedPatches
from ..ssl.photometric import PhotometricOptions
from ..training.checkpoint import Checkpointer, best_checkpoint
from ..training.collectives_time import CollectivesTime, watch_collectives
from ..training.metrics_log import MetricsLog
from ..training.progress import TrainingProgress
from ..training.recipe import check_recipe
from ..training.run_directory import RunDirectory
from ..training.stop_signal import StopSignal
from ..training.teacher_file import write_teacher
from ..training.throughput import Throughput
from ..training.world import World, join_world
from .build import build_state, crop_options, describe_run
from .config import PretrainConfig
from .online_probe import OnlineProbe
from .run_report import RunReport
from .step import NonFiniteError, TrainStep

Resume = Literal["auto", "never", "must"]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Args:
        step: Number of finished steps.
        stopped_by: The signal that stopped it, its state saved; None if it is finished.
        teacher: The teacher's weights; None unless it is finished.
    """

    step: int
    stopped_by: str | None = None
    teacher: Path | None = None


def train(
    config: PretrainConfig,
    *,
    resume: Resume = "auto",
    allow_changes: bool = False,
    show_progress: bool = True,
) -> TrainResult:
    """Pretrains a backbone, or goes on where a run stopped; every process of torchrun calls it.

    On the same number of processes, devices and versions a resumed run equals one that never stopped, bit for bit. On
    another number samples, crops, colours and masks are the same, and sums are rounded differently.

    Args:
        config: The run.
        resume: "auto" goes on with what is there, "never" refuses a folder that holds a run, "must" one that holds
            none.
        allow_changes: Whether a resumed run may have another recipe than it had.
        show_progress: Whether to show a bar on a terminal.

    Returns:
        How it ended.

    Raises:
        PretrainError: The run cannot start or go on; the message names the cause and the remedy.
        DataError: Patches cannot be read.
    """
    with join_world(config.parallel) as world:
        return _Run(config, world).train(resume, allow_changes, show_progress)


class _Run:
    def __init__(self, config: PretrainConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.directory = RunDirectory(config.output)
        # before anything is written, for most mistakes show here
        self.num_images = config.images_per_pass(world.size)
        self.samples = open_samples(config.data.sources, slides=config.data.slides, edge=config.data.edge)
        self.state, self.grid, mean, std = build_state(config, world)
        self.colour = PhotometricOptions(hed_jitter=config.crops.hed_jitter)
        self.augment = DeviceAugmentation(config.crops.augmentation, mean=mean, std=std, options=self.colour)
        self.probe = (
            None
            if config.monitor.probe is None
            else OnlineProbe(
                config.monitor.probe,
                image_size_px=config.crops.global_size_px,
                mean=mean,
                std=std,
                batch_size=config.monitor.probe_batch_size,
                device=world.device,
                counts_layer=config.monitor.probe_counts_layer,
            )
        )
        self.checkpoints = Checkpointer(
            self.directory.checkpoints,
            world,
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
        )

    def train(self, resume: Resume, allow_changes: bool, show_progress: bool) -> TrainResult:
        config, world = self.config, self.world
        with ExitStack() as stack:
            messages = world.on_main(lambda: self._claim(stack, resume, allow_changes))
            stack.callback(self.checkpoints.close)
            start, damaged = self.checkpoints.load_newest(self.state)
            best = world.on_main(lambda: best_checkpoint(self.directory.checkpoints))
            self.best = None if best is None else best[1]
            progress = stack.enter_context(
                TrainingProgress(config.num_steps, start_step=start, enabled=world.is_main and show_progress)
            )
            stop = stack.enter_context(StopSignal())
            log = None
            if world.is_main:
                log = stack.enter_context(
                    MetricsLog(self.directory, tensorboard=config.monitor.tensorboard, resume_step=start)
                )
            self.log = log
            self.report = RunReport(config, world, progress, log, num_samples=len(self.samples))
            for message in (
                *messages,
                *(f"warning: {problem}; an earlier one is taken" for problem in damaged),
            ):
                progress.say(message, style="yellow")
            if start:
                progress.say(f"resumed behind step {start} of {config.num_steps}")
            step = self._steps(start, stop)
            self.checkpoints.save(step, self.state)
            self.checkpoints.wait()
            if step < config.num_steps:
                progress.say(
                    f"stopped by {stop.name or 'a signal'} behind step {step}, saved; start again to go on"
                )
                return TrainResult(step=step, stopped_by=stop.name or "SIGTERM")
            teacher = write_teacher(self.state.teacher, self.directory.path, world)
            return TrainResult(step=step, teacher=teacher)

    def _claim(self, stack: ExitStack, resume: Resume, allow_changes: bool) -> list[str]:
        """Makes the run's folder, or checks that the run in it is this one, and keeps others from it."""
        record = describe_run(self.config, self.samples)
        before = self.directory.read_config() if self.directory.holds_run() else None
        changes: list[str] = []
        if before is None and resume == "must":
            raise PretrainError(
                f"{self.directory.path}: holds no run to resume; leave --resume out to start one"
            )
        if before is not None and resume != "never":
            changes = check_recipe(before, record, allow_changes=allow_changes)
        with writing(self.directory.path):
            self.directory.path.mkdir(parents=True, exist_ok=True)
        stack.enter_context(claimed(self.directory.config))
        self.directory.create(record, resume=resume != "never")
        return [f"warning: the recipe changed: {change}" for change in changes]

    def _steps(self, start: int, stop: StopSignal) -> int:
        """Runs from one step to the last, or to a signal; returns the number of finished steps."""
        config, world = self.config, self.world
        accumulate = config.parallel.accumulate
        train_step = TrainStep(config, world, self.state, self.augment, self.grid)
        throughput = Throughput(world.device)
        loader = make_loader(
            self.samples,
            crops=crop_options(config),
            augmentation=config.crops.augmentation,
            photometric=self.colour,
            batch_size=self.num_images,
            num_steps=config.num_steps * accumulate,
            start_step=start * accumulate,
            rank=world.rank,
            world_size=world.size,
            seed=config.seed,
            num_workers=config.data.num_workers,
            max_corrupt=config.data.max_corrupt,
            pin_memory=world.device.type == "cuda",
        )
        # closed by whatever ends the loop, for its workers end with it
        with closing(iter(loader)) as batches:
            for step in range(start, config.num_steps):
                try:
                    with self._watch_collectives(step) as collectives:
                        result = train_step(step, self.report.watch(step, batches), throughput)
                except NonFiniteError as error:
                    raise PretrainError(
                        f"{error}; {self._save_failure(step, error)}; start again from an earlier checkpoint with a lower "
                        "learning rate, or in fp32"
                    ) from error
                throughput.count(config.batch_size)
                self.report.collectives(step + 1, collectives)
                self.report.step(step + 1, result, throughput)
                with throughput.measure("communication"):
                    stopping = world.any(stop.name is not None)
                self._probe_and_save(step + 1, stopping)
                if stopping:
                    return step + 1
        return config.num_steps

    def _watch_collectives(self, step: int) -> AbstractContextManager[CollectivesTime]:
        """Profiles a step if it is due."""
        every = self.config.monitor.collectives_every_steps
        if self.world.size > 1 and every and step % every == every - 1:
            return watch_collectives(self.world.device)
        return nullcontext(CollectivesTime())

    def _probe_and_save(self, done: int, stopping: bool) -> None:
        config = self.config
        due = done % config.checkpoint.every_steps == 0
        score = None
        if self.probe is not None and (
            done % config.monitor.probe_every_steps == 0 or done == config.num_steps
        ):
            score = self._run_probe(done, self.probe)
        if due or score is not None:
            self.checkpoints.save(done, self.state, score=score)

    def _run_probe(self, done: int, probe: OnlineProbe) -> float | None:
        """Probes the teacher; returns the first number if it is the best of the run."""
        teacher, device = self.state.teacher, self.world.device
        num_patches = self.grid[0] * self.grid[1]

        def features(images: torch.Tensor) -> torch.Tensor:
            unmasked = MaskedPatches.of(torch.zeros(len(images), num_patches, dtype=torch.bool), device)
            found: torch.Tensor = teacher(images, masked=unmasked).class_features
            return found

        scores = probe(teacher, features)
        name, score = next(iter(scores.items()))
        if self.log is not None:
            self.log.write(done, probe=scores)
            self.directory.add_evaluation(
                metric=name, value=score, dataset=str(self.config.monitor.probe), protocol=probe.protocol
            )
        if self.best is not None and score <= self.best:
            return None
        self.best = score
        return score

    def _save_failure(self, step: int, error: NonFiniteError) -> str:
        """Keeps what led to numbers that are not finite, out of the way of what is resumed; says where."""
        folder = self.directory.path / "failures" / f"step_{step:08d}_{int(time.time())}"
        folder = self.world.from_main(folder)
        saver = Checkpointer(folder, self.world, keep=0, asynchronous=False)
        tensors: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(error.batches):
            for name in ("global_crops", "local_crops", "sample_keys", "indices"):
                tensors[f"{number}.{name}"] = getattr(batch, name).cpu().contiguous()
        try:
            self.checkpoints.wait()
            saver.save(step, self.state)
            write_file(folder / f"crops_rank{self.world.rank}.safetensors", save(tensors))
        except TimmMVHybridError as problem:
            return f"the state before it and its crops could not be kept: {problem}"
        return f"the state before it and its crops are in {folder}"
