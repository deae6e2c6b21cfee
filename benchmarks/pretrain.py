"""The whole pretraining loop beside its forward and backward passes alone: speed, memory, where the time goes."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch

from timm_mvhybrid.pretrain.config import CheckpointConfig, DataConfig, MonitorConfig, PretrainConfig
from timm_mvhybrid.pretrain.plan import paper, smoke
from timm_mvhybrid.pretrain.train import DINOv2Objective, train
from timm_mvhybrid.ssl.crops import CropBatch, make_crops
from timm_mvhybrid.training.parallelize import DTYPES
from timm_mvhybrid.training.world import join_world

from .goals import Goal
from .measure import Contender, Spread, measure, spread, timer_for
from .report import Report, Table
from .settings import Settings

MODELS = ("mvhybrid_small_patch16_256", "vit24_small_patch16_256")
OVERHEAD = "{}: step of the loop / forward and backward passes alone"
BATCH_SIZE = 64
NUM_PATCHES, PATCH_SIZE_PX = 2048, 256
LOG_EVERY = 5
# lines of the log before workers, allocator and clocks have settled
WARMUP_LINES = 3


def run(settings: Settings, device: torch.device, num_steps: int) -> Report:
    """Pretrains each model for some steps on generated patches, by the paper's recipe on one device.

    Args:
        settings: The options.
        device: A GPU; the CPU runs the same code in a smoke run with a tiny model.
        num_steps: Steps of each run.

    Returns:
        The report.
    """
    models = ("test_mvhybrid", "test_vit12") if settings.quick else MODELS
    figures: dict[str, Spread] = {}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        patches = write_patches(Path(folder) / "patches.h5", 32 if settings.quick else NUM_PATCHES)
        for model in models:
            config = make_config(settings, Path(folder) / model, patches, model, device, num_steps)
            alone = time_passes(config, settings)
            train(config, show_progress=False)
            lines = read_lines(config.output)
            speed = spread([line["throughput/images_per_second"] for line in lines])
            step = spread([config.batch_size / line["throughput/images_per_second"] for line in lines])
            figures[OVERHEAD.format(model)] = Spread(
                median=step.median / alone.median,
                low=step.low / alone.median,
                high=step.high / alone.median,
            )
            shares = [
                f"{spread([line.get(f'throughput/share_{part}', 0.0) for line in lines]).median:.1%}"
                for part in ("data", "compute", "communication", "other")
            ]
            memory = lines[-1].get("peak_memory_gib")
            rows.append(
                [
                    model,
                    f"{speed.median:.1f}",
                    f"{speed.low:.1f} – {speed.high:.1f}",
                    f"{alone.median * 1e3:.1f}",
                    f"{step.median * 1e3:.1f}",
                    "not measured" if memory is None else f"{memory:.1f}",
                    *shares,
                ]
            )
    batch = config.batch_size
    return Report(
        name="pretrain",
        title=f"Pretraining on one device, {config.parallel.precision}, batch {batch}",
        method=(
            f"The paper's recipe on {'32' if settings.quick else NUM_PATCHES} generated patches in a raw h5 file, "
            f"{num_steps} steps of the whole loop with reading, crops, augmentation, optimizer and teacher; medians and "
            f"quartiles over intervals of {1 if settings.quick else LOG_EVERY} steps after the first ones. The passes alone "
            "are teacher, student and loss, forward and backward, on one batch that is on the device already."
        ),
        figures=figures,
        goals=[Goal(figure=OVERHEAD.format(model), relation="≤", bound=1.1) for model in models],
        tables=[
            Table(
                title="Speed, memory of the device, and fractions of the wall-clock time",
                columns=[
                    "model",
                    "images/s",
                    "quartiles",
                    "passes ms",
                    "step ms",
                    "peak GiB",
                    "data",
                    "compute",
                    "communication",
                    "other",
                ],
                rows=rows,
            )
        ],
        judged=not settings.quick,
    )


def write_patches(path: Path, num_patches: int) -> Path:
    """Writes noise with colours of its own for each patch; its content does not matter to the speed."""
    random = np.random.default_rng(0)
    side = PATCH_SIZE_PX
    with h5py.File(path, "w") as file:
        images = file.create_dataset(
            "img", (num_patches, side, side, 3), dtype=np.uint8, chunks=(1, side, side, 3)
        )
        for number in range(num_patches):
            images[number] = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        file["coords"] = np.stack([np.arange(num_patches) * side, np.zeros(num_patches, dtype=int)], axis=1)
    return path


def make_config(
    settings: Settings, output: Path, patches: Path, model: str, device: torch.device, num_steps: int
) -> PretrainConfig:
    """Takes the paper's recipe for one device; a smoke run takes the smoke preset."""
    data = DataConfig(sources=(str(patches),), num_workers=0 if settings.quick else 12)
    config = (smoke if settings.quick else paper)(output=output, data=data)
    warmup = replace(config.optimizer, warmup_steps=min(config.optimizer.warmup_steps, num_steps))
    precision = "fp32" if settings.quick else "bf16"
    return replace(
        config,
        num_steps=num_steps,
        batch_size=4 if settings.quick else BATCH_SIZE,
        model=replace(config.model, name=model),
        optimizer=warmup,
        parallel=replace(config.parallel, device=device.type, precision=precision),
        checkpoint=CheckpointConfig(every_steps=num_steps),
        monitor=MonitorConfig(log_every_steps=1 if settings.quick else LOG_EVERY),
    )


def time_passes(config: PretrainConfig, settings: Settings) -> Spread:
    """Times forward and backward of a step on a batch that is on the device, in s."""
    with join_world(config.parallel) as world:
        device = world.device
        objective = DINOv2Objective(config, world)
        views = objective.prepare(_one_batch(config), step=0)
        precision = config.parallel.precision

        def passes() -> None:
            objective.trained.zero_grad(set_to_none=True)
            with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
                losses = objective.losses(views, step=0)
            losses["total"].backward()

        contender = Contender(name="passes", call=passes)
        times = measure([contender], settings.effort(min_rounds=10, warmups=3), timer_for(device))
        return times.spread("passes")


def _one_batch(config: PretrainConfig) -> CropBatch:
    random = np.random.default_rng(1)
    side = PATCH_SIZE_PX
    images = (random.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(config.batch_size))
    keys = np.arange(config.batch_size, dtype=np.int64)
    cut = make_crops(images, keys, config.crops)
    return CropBatch(
        step=0,
        global_crops=cut[0],
        local_crops=cut[1],
        sample_keys=torch.from_numpy(keys),
        indices=torch.from_numpy(keys),
    )


def read_lines(run: Path) -> list[dict[str, float]]:
    """Reads what the loop logged about its speed, after the first lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "throughput/images_per_second" in line]
    return measured[min(WARMUP_LINES, len(measured) - 1) :]
