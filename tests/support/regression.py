"""An objective of a user's own: regression by one layer, on noisy samples, kept near a layer that stays frozen.

``python -m support.regression CONFIG_JSON [STEP]`` runs it; with a step, the process is killed within it.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn import functional as F

from timm_mvhybrid.runtime.codec import update
from timm_mvhybrid.training.config import AdamWConfig, CheckpointConfig, LogConfig, ParallelConfig, RunConfig
from timm_mvhybrid.training.config_file import read_config_file
from timm_mvhybrid.training.loop import run_training
from timm_mvhybrid.training.objective import Alarm, Evaluation, Objective
from timm_mvhybrid.training.parallelize import parallelize

NUM_STEPS, WIDTH = 7, 5


def regression_config(output, **changes):
    return update(
        RunConfig(
            output=output,
            num_steps=NUM_STEPS,
            batch_size=12,
            optimizer=AdamWConfig(base_learning_rate=2.0, warmup_steps=1, clip_norm=1.0),
            parallel=ParallelConfig(device="cpu", threads=1),
            checkpoint=CheckpointConfig(every_steps=2, keep=0),
            monitor=LogConfig(log_every_steps=1),
        ),
        changes,
    )


class Regression(Objective):
    """y ≈ W x + b, with x drawn anew for every pass; the running mean of y is a state of its own."""

    name = "regression"
    num_samples = 1200
    data_fingerprint = "drawn"

    def __init__(self, config, world, signals=None):
        self.config, self.world = config, world
        self.signals = signals or {}
        torch.manual_seed(config.seed)
        self.trained, self.anchor = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2).requires_grad_(False)
        self.truth = torch.randn(2, WIDTH)
        parallelize(self.trained, world.mesh, config.parallel, recompute=True)
        self.mean = torch.zeros(2)
        self.num_samples_seen = 0
        self.steps = []

    def batches(self, start_pass):
        rows = self.config.images_per_pass(self.world.world_size)
        for number in range(start_pass, self.config.num_steps * self.config.parallel.accumulate):
            x = torch.randn(
                rows * self.world.world_size, WIDTH, generator=torch.Generator().manual_seed(number)
            )
            yield {"x": x[self.world.rank * rows :][:rows], "number": number}

    def prepare(self, batch, step):
        x = batch["x"]
        y = x @ self.truth.T
        if self.world.world_size == 1:
            y = y + 0.01 * torch.randn_like(y)
        return x, y

    def losses(self, batch, step):
        if step in self.signals:
            os.kill(os.getpid(), self.signals[step])
        x, y = batch
        self.mean = 0.9 * self.mean + 0.1 * y.mean(0)
        self.num_samples_seen += len(x)
        predicted = self.trained(x)
        parts = {"fit": F.mse_loss(predicted, y), "anchor": 0.01 * F.mse_loss(predicted, self.anchor(x))}
        return {**parts, "total": sum(parts.values())}

    def after_step(self, step):
        self.steps.append(step)

    def schedules(self, step):
        return {"doubled": 2 * step}

    def metrics(self):
        return {"mean_y": self.mean.mean().item()}

    def check(self, step, metrics):
        return Alarm(event="late", message="it is late", stop=False) if step == 6 else None

    def evaluate(self, step):
        return Evaluation(scores={"r": step % 4}, dataset="drawn", protocol="none") if step % 3 == 0 else None

    def state_dict(self):
        return {
            "model": get_model_state_dict(self.trained),
            "mean": self.mean,
            "seen": self.num_samples_seen,
        }

    def load_state_dict(self, state):
        set_model_state_dict(self.trained, state["model"])
        self.mean, self.num_samples_seen = state["mean"], state["seen"]

    def write_weights(self, folder):
        state = {name: _whole(value) for name, value in self.trained.state_dict().items()}
        path = folder / "layer.pt"
        if self.world.is_first:
            torch.save({**state, "mean": self.mean, "seen": self.num_samples_seen}, path)
        return path


def _whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def run_regression(config, signals=None, **options):
    return run_training(config, partial(Regression, config, signals=signals), show_progress=False, **options)


if __name__ == "__main__":
    values = read_config_file(Path(sys.argv[1]))
    run_regression(
        update(regression_config(Path(values["output"])), values),
        signals={int(step): signal.SIGKILL for step in sys.argv[2:]},
    )
