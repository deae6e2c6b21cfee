"""A step's result → a line of the log, the bar, and alarms."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..runtime.errors import PretrainError
from ..ssl.crops import CropBatch
from ..training.collectives_time import CollectivesTime
from ..training.metrics_log import MetricsLog
from ..training.progress import TrainingProgress
from ..training.throughput import Throughput
from ..training.world import World
from .config import PretrainConfig
from .monitor import CollapseAlarm, FeatureWindow
from .step import StepResult


class RunReport:
    """Everything about the run that someone may look at: log lines, the bar, alarms."""

    def __init__(
        self,
        config: PretrainConfig,
        world: World,
        progress: TrainingProgress,
        log: MetricsLog | None,
        *,
        num_samples: int,
    ) -> None:
        self.config, self.world = config, world
        self.progress, self.log = progress, log
        self.num_samples = num_samples
        monitor = config.monitor
        self.alarm = CollapseAlarm(
            min_feature_std=monitor.min_feature_std,
            min_rankme=monitor.min_rankme,
            num_checks=monitor.collapse_checks,
        )
        self.features = FeatureWindow()
        self.num_corrupt = 0

    def watch(self, step: int, batches: Iterator[CropBatch]) -> Iterator[CropBatch]:
        """Hands batches on and reports what could not be read of them."""
        for batch in batches:
            for sample in batch.corrupt:
                self.num_corrupt += 1
                self.progress.say(f"warning: replaced {sample.name}: {sample.message}", style="yellow")
                if self.log is not None:
                    self.log.write(step, event="corrupt", name=sample.name, message=sample.message)
            yield batch

    def collectives(self, done: int, watched: CollectivesTime) -> None:
        """Logs the share of a profiled step's time that went to collectives."""
        if watched.share is not None:
            shares = self.world.mean({"share_collectives": watched.share})
            if self.log is not None:
                self.log.write(done, throughput=shares)

    def step(self, done: int, result: StepResult, throughput: Throughput) -> None:
        """Logs a step if it is due."""
        self.features.add(result.last.teacher_features)
        if done % self.config.monitor.log_every_steps and done != self.config.num_steps:
            self.progress.update(done)
            return
        schedules = result.schedules
        values = self.world.mean({**result.summary(), **self.features.summary()})
        spread = {name: values.pop(name) for name in ("feature_std", "rankme")}
        speed = throughput.summary()
        if self.log is not None:
            self.log.write(
                done,
                **values,
                **spread,
                grad_norm=result.norms,
                learning_rate=schedules.learning_rate,
                weight_decay=schedules.weight_decay,
                teacher_momentum=schedules.teacher_momentum,
                teacher_temperature=schedules.teacher_temperature,
                loss_scale=result.loss_scale,
                skipped=result.skipped,
                epoch=done * self.config.batch_size / self.num_samples,
                num_corrupt=self.num_corrupt,
                throughput=speed,
                **_memory(self.world.device),
            )
        self.progress.update(done, loss=values["loss/total"], images_per_second=speed["images_per_second"])
        problem = self.alarm.check(done, **spread)
        if problem is not None:
            self.progress.say(f"warning: {problem}", style="yellow")
            if self.log is not None:
                self.log.write(done, event="collapse", message=problem)
            if self.config.monitor.stop_on_collapse:
                raise PretrainError(problem)


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
