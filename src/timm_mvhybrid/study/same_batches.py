"""What a run really saw, step by step, as one number a step: that all cells of a seed saw the same is checked, not believed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pretrain.config import PretrainConfig
from ..pretrain.train import DINOv2Objective
from ..runtime.codec import encode
from ..ssl.crops import NUM_GLOBAL, CropBatch
from ..ssl.distillation import Views
from ..training.metrics_log import read_lines
from ..training.objective import Alarm
from ..training.run_directory import RunDirectory
from ..training.world import World
from .study_file import digest_of

METRIC = "batch_digest"
"""Name of the number in the log of a run."""
# so few that the sum over thousands of processes is exact in a float64, in which the log averages
_BITS = 40


def batch_digest(batch: CropBatch) -> int:
    """Identifies the images of a batch, in whatever order they stand: which samples, their keys, and their crops' pixels.

    Returns:
        The sum over the images of 40 bits of SHA-256, modulo 2⁴⁰. So the sum over the processes of a step does not depend
        on their number.
    """
    size = len(batch)
    total = 0
    for row in range(size):
        found = hashlib.sha256(f"{int(batch.sample_keys[row])} {int(batch.indices[row])}".encode())
        for crops, number in (
            (batch.global_crops, NUM_GLOBAL),
            (batch.local_crops, len(batch.local_crops) // max(size, 1)),
        ):
            for crop in range(number):
                found.update(crops[crop * size + row].contiguous().numpy().tobytes())
        total += int.from_bytes(found.digest()[: _BITS // 8], "big")
    return total % 2**_BITS


class WatchedObjective(DINOv2Objective):
    """Pretraining that logs what it saw at each step that is logged, and stops where another cell saw something else.

    Args:
        config: The run.
        world: Its processes.
        expected: Step → what another cell of the same data and seed saw.
        other: The name of that cell.
    """

    def __init__(self, config: PretrainConfig, world: World, expected: Mapping[int, int], other: str) -> None:
        super().__init__(config, world)
        self._expected, self._other = expected, other
        self._seen = 0

    def prepare(self, batch: CropBatch, step: int) -> Views:
        """Notes what the step's images are, where it is logged."""
        if batch.step == step * self.config.parallel.accumulate:
            self._seen = 0
        done = step + 1
        if done % self.config.monitor.log_every_steps == 0 or done == self.config.num_steps:
            self._seen += batch_digest(batch)
        return super().prepare(batch, step)

    def metrics(self) -> dict[str, float]:
        """Adds what all processes saw."""
        return {**super().metrics(), METRIC: sum(self.world.gather(self._seen)) % 2**_BITS}

    def check(self, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Stops a run that sees other images, or other crops of them, than the cell that it is compared with."""
        expected = self._expected.get(step)
        if expected is not None and int(metrics[METRIC]) != expected:
            message = (
                f"at step {step} this cell sees other images or crops than cell {self._other}, which has the same data "
                "and seed; nothing they reach can be compared: the data changed, or the versions of what reads them; "
                "choose another `output`"
            )
            return Alarm(event="other_batches", message=message, stop=True)
        return super().check(step, metrics)


def seen_by_run(run: Path) -> dict[int, int]:
    """Reads what a run saw, step → number; empty where there is no log."""
    lines = read_lines(RunDirectory(run).metrics)
    return {line["step"]: int(line[METRIC]) for line in lines if METRIC in line}


def data_group(config: PretrainConfig, data_fingerprint: str) -> str:
    """Identifies what decides what a run sees: cells of one group must see the same at every step."""
    crops: dict[str, Any] = encode(config.crops)
    return digest_of([config.seed, config.batch_size, crops, data_fingerprint])


def first_difference(seen: Mapping[int, int], other: Mapping[int, int]) -> int | None:
    """Finds the first step that both logged and at which they saw different images; None where there is none."""
    return next((step for step in sorted(seen.keys() & other.keys()) if seen[step] != other[step]), None)
