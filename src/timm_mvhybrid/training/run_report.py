"""A step's result → a line of the log, the bar, and alarms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..runtime.errors import PretrainError
from .config import RunConfig
from .metrics_log import MetricsLog
from .objective import Objective
from .progress import TrainingProgress
from .step import StepResult, as_numbers
from .throughput import CollectivesTime, Throughput
from .world import World


class RunReport:
    """Everything about the run that someone may look at: log lines, the bar, alarms."""

    def __init__(
        self,
        config: RunConfig,
        world: World,
        objective: Objective,
        progress: TrainingProgress,
        log: MetricsLog | None,
    ) -> None:
        self.config, self.world, self.objective = config, world, objective
        self.progress, self.log = progress, log
        self.num_corrupt = 0

    def watch(self, step: int, batches: Iterator[Any]) -> Iterator[Any]:
        """Hands batches on and reports what could not be read of them."""
        for batch in batches:
            for sample in self.objective.unreadable(batch):
                self.num_corrupt += 1
                self.warn(f"replaced {sample.name}: {sample.message}")
                if self.log is not None:
                    self.log.write(step, event="corrupt", name=sample.name, message=sample.message)
            yield batch

    def warn(self, message: str) -> None:
        """Prints a warning, once for all processes."""
        self.progress.say(f"warning: {message}", style="yellow")

    def collectives(self, done: int, watched: CollectivesTime) -> None:
        """Logs the fraction of a profiled step's time that went to collectives."""
        if watched.share is not None:
            shares = self.world.mean({"share_collectives": watched.share})
            if self.log is not None:
                self.log.write(done, throughput=shares)

    def step(self, done: int, result: StepResult, throughput: Throughput) -> None:
        """Logs a step if it is due."""
        if done % self.config.monitor.log_every_steps and done != self.config.num_steps:
            self.progress.update(done)
            return
        losses = {f"loss/{name}": value for name, value in as_numbers(result.losses).items()}
        values = self.world.mean({**losses, **self.objective.metrics()})
        speed = throughput.summary()
        if self.log is not None:
            self.log.write(
                done,
                **values,
                grad_norm=result.norms,
                learning_rate=result.rates.learning_rate,
                weight_decay=result.rates.weight_decay,
                **self.objective.schedules(done - 1),
                loss_scale=result.loss_scale,
                skipped=result.skipped,
                epoch=done * self.config.batch_size / self.objective.num_samples,
                num_corrupt=self.num_corrupt,
                throughput=speed,
                **_memory(self.world.device),
            )
        self.progress.update(done, loss=values["loss/total"], images_per_second=speed["images_per_second"])
        alarm = self.objective.check(done, values)
        if alarm is not None:
            self.warn(alarm.message)
            if self.log is not None:
                self.log.write(done, event=alarm.event, message=alarm.message)
            if alarm.stop:
                raise PretrainError(alarm.message)


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
