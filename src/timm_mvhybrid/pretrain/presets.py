"""Named starting points: preset → configuration, every field of which may still be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .config import (
    CheckpointConfig,
    CropConfig,
    DataConfig,
    HeadConfig,
    LossConfig,
    ModelConfig,
    MonitorConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
)


def paper(*, output: Path, data: DataConfig) -> PretrainConfig:
    """The recipe of the MV_Hybrid paper: 200 × 493 steps of 1536 patches in float32.

    Source: arXiv 2508.00383; blur with the probabilities that its implementation had in effect.

    Returns:
        The configuration; the defaults of all sections are the paper's.
    """
    return PretrainConfig(output=output, data=data)


def single_gpu(*, output: Path, data: DataConfig) -> PretrainConfig:
    """The paper's recipe for one GPU: 128 patches a step in bfloat16, as many steps, the learning rate scaled down."""
    return PretrainConfig(
        output=output,
        data=data,
        batch_size=128,
        parallel=ParallelConfig(precision="bf16"),
        checkpoint=CheckpointConfig(every_steps=1000),
    )


def smoke(*, output: Path, data: DataConfig) -> PretrainConfig:
    """A run of a minute or two on a CPU, to see that everything works: tiny model, heads and crops."""
    return PretrainConfig(
        output=output,
        data=data,
        num_steps=100,
        batch_size=16,
        model=ModelConfig(name="test_mvhybrid"),
        head=HeadConfig(num_prototypes=256, hidden_dim=128, bottleneck_dim=64),
        loss=LossConfig(teacher_temperature_warmup_steps=30, regularizer_scope="world"),
        crops=CropConfig(global_size_px=128, local_size_px=64, num_local=4),
        optimizer=OptimizerConfig(warmup_steps=10, freeze_last_layer_steps=1, teacher_momentum=0.96),
        parallel=ParallelConfig(device="cpu"),
        checkpoint=CheckpointConfig(every_steps=25),
        monitor=MonitorConfig(log_every_steps=1, collectives_every_steps=5),
    )


PRESETS: dict[str, Callable[..., PretrainConfig]] = {
    "paper": paper,
    "single_gpu": single_gpu,
    "smoke": smoke,
}
