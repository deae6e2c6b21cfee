"""Runs of a few steps, in this process or in others, on generated patches."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import torch
from safetensors.torch import load_file
from support.forked import run_module, threads_of

from timm_mvhybrid.export.training_checkpoint import read_training_checkpoint
from timm_mvhybrid.pretrain.config import DataConfig
from timm_mvhybrid.pretrain.plan import smoke
from timm_mvhybrid.training import run_report, stop_signal

NUM_STEPS = 6


def write_patches(path, num_patches=24, size=64):
    """Patches with a colour and a stripe of their own, so that no two crops are alike."""
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (num_patches, size, size, 3), dtype=np.uint8)
    images += random.integers(60, 190, (num_patches, 1, 1, 3), dtype=np.uint8)
    images[:, :: 2 + num_patches % 3] //= 2
    with h5py.File(path, "w") as file:
        file["img"] = images
        file["coords"] = np.stack([np.arange(num_patches) * size, np.zeros(num_patches)], axis=1).astype(int)
        file["barcode"] = np.array([[f"P{i}".encode()] for i in range(num_patches)], dtype=object)
    return path


def small(output, patches, **changes):
    """The smoke preset, smaller still; changes name a section's fields as `section_field`."""
    config = smoke(output=output, data=DataConfig(sources=(str(patches),), num_workers=0))
    base = {
        "num_steps": NUM_STEPS,
        "batch_size": 4,
        "head__num_prototypes": 32,
        "head__hidden_dim": 32,
        "head__bottleneck_dim": 16,
        "crops__global_size_px": 64,
        "crops__local_size_px": 32,
        "crops__num_local": 2,
        "optimizer__warmup_steps": 2,
        "loss__teacher_temperature_warmup_steps": 3,
        "checkpoint__every_steps": 2,
        "checkpoint__keep": 0,
    }
    return change(config, **{**base, **changes})


def change(config, **changes):
    """Replaces fields; two underscores stand for the dot."""
    sections = {}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        before = sections.get(section, getattr(config, section))
        sections[section] = dataclasses.replace(before, **{field: value}) if field else value
    return dataclasses.replace(config, **sections)


def write_config(config, path):
    """A file that `--config` reads."""
    path.write_text(json.dumps(dataclasses.asdict(config), default=str))
    return path


def command(config_file, *arguments, ranks=1):
    """The command line of a run."""
    module = ["-m", "timm_mvhybrid.pretrain", "--config", str(config_file), *arguments]
    if ranks == 1:
        return [sys.executable, *module]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        *module,
    ]


def start(config_file, *arguments, ranks=1):
    """Starts a run in its own processes."""
    return subprocess.Popen(
        command(config_file, *arguments, ranks=ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads_of(ranks))},
        start_new_session=True,
    )


def run(config_file, *arguments, ranks):
    """Runs to the end, without torchrun; returns what it printed."""
    code, output, errors = run_module("timm_mvhybrid.pretrain", ["--config", config_file, *arguments], ranks)
    assert code == 0, errors
    return output, errors


def wait_for(path, process, seconds=120):
    """Waits until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.005)


def kill(process):
    """Ends a run and all it started, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def teacher(folder):
    """The weights that a finished run left."""
    return load_file(folder / "teacher.safetensors")


def student(folder):
    """The student of the newest checkpoint."""
    tensors = read_training_checkpoint(folder, "student").tensors
    return {name.removeprefix("backbone."): value for name, value in tensors.items()}


def lines(folder):
    """The log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal(a, b):
    """Whether two dictionaries hold the same tensors, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(step, patch):
    """Raises the signal's flag once a step is done; `patch` is a MonkeyPatch."""
    signals = []
    patch.setattr(stop_signal.StopSignal, "__enter__", lambda self: signals.append(self) or self)
    original = run_report.RunReport.step

    def report(self, done, *arguments):
        original(self, done, *arguments)
        if done == step:
            signals[0].name = "SIGTERM"

    patch.setattr(run_report.RunReport, "step", report)
