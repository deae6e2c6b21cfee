"""Presets, and what a run will need without running it: configuration → steps, rates, speed and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from ..data.manifest import open_samples
from ..ssl.student_teacher import Network, build_pair
from ..training.parallelize import DTYPES
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


_GIB = 2.0**30
_FLOAT32_BYTES = 4
# gradient and two moments beside each weight of the student
_STUDENT_COPIES = 4
# what is alive at once of scores: the student's, their softmax, its gradient, the teacher's targets
_SCORE_COPIES = 4
_DAYS = (1, 3, 7)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will need.

    Attributes:
        num_samples: Patches of all sources.
        num_epochs: How often each patch of weight 1 is drawn.
        peak_learning_rate: After the warm-up.
        images_per_pass: Patches of a process in a backward pass.
        backbone_parameters: Parameters of the backbone.
        head_parameters: Parameters of the heads.
        images_per_second: Patches per second, over all processes, for the run to end after so many days.
        memory_gib: Estimated memory of each process by what takes it; activations as autograd keeps them, without the
            allocator's losses and the kernels' work space.
    """

    num_samples: int
    num_epochs: float
    peak_learning_rate: float
    images_per_pass: int
    backbone_parameters: int
    head_parameters: int
    images_per_second: dict[int, float]
    memory_gib: dict[str, float]


def make_plan(config: PretrainConfig, world_size: int) -> Plan:
    """Opens the data and builds the model, and computes what follows.

    Raises:
        PretrainError: The configuration does not fit the processes, or the model cannot be trained.
        DataError: The data cannot be opened.
    """
    images = config.images_per_pass(world_size)
    samples = open_samples(config.data.sources, slides=config.data.slides, edge=config.data.edge)
    student, _ = build_pair(
        config.model.name,
        # the number does not change what is needed, and 1 spares the time to fill large heads
        replace(config.head, num_prototypes=1, learn_gain=False),
        model_arguments={"img_size": config.crops.global_size_px, **config.model.arguments},
    )
    num_heads = 1 + config.head.separate_ibot_head
    backbone = sum(p.numel() for p in student.backbone.parameters())
    heads = sum(p.numel() for p in student.parameters()) - backbone
    heads += num_heads * (config.head.num_prototypes - 1) * config.head.bottleneck_dim
    seen = config.num_steps * config.batch_size
    return Plan(
        num_samples=len(samples),
        num_epochs=seen / len(samples),
        peak_learning_rate=config.peak_learning_rate,
        images_per_pass=images,
        backbone_parameters=backbone,
        head_parameters=heads,
        images_per_second={days: seen / (days * 86_400) for days in _DAYS},
        memory_gib=_memory(config, student, backbone + heads, images, world_size),
    )


def format_plan(plan: Plan, config: PretrainConfig, world_size: int) -> str:
    """Lays a plan out for reading."""
    speeds = ", ".join(f"{rate:,.0f} for {days} d" for days, rate in plan.images_per_second.items())
    memory = ", ".join(f"{name} {size:.2f}" for name, size in plan.memory_gib.items())
    lines = {
        "patches": f"{plan.num_samples:,}, each seen {plan.num_epochs:.1f} times",
        "steps": f"{config.num_steps:,} of {config.batch_size} patches: {world_size} processes × "
        f"{config.parallel.accumulate} passes × {plan.images_per_pass}",
        "learning rate": f"{plan.peak_learning_rate:.3g} at its peak, after step {config.optimizer.warmup_steps:,}",
        "parameters": f"{plan.backbone_parameters / 1e6:.2f} M backbone, {plan.head_parameters / 1e6:.2f} M heads",
        "patches/s needed": speeds,
        "memory of a process": f"about {sum(plan.memory_gib.values()):.2f} GiB: {memory}",
    }
    return "\n".join(f"{name:<20} {value}" for name, value in lines.items())


def _memory(
    config: PretrainConfig, student: Network, num_parameters: int, images: int, world_size: int
) -> dict[str, float]:
    shards = {"none": 1, "hybrid": config.parallel.shard_size or 1}.get(config.parallel.sharding, world_size)
    kept = num_parameters * _FLOAT32_BYTES / shards
    scores = 2 + config.crops.num_local
    rows = images * scores + (config.head.ibot_chunk_rows or 2 * images * _num_patches(student))
    activations = _activation_bytes(config, student) * images
    if config.parallel.activation_checkpointing:
        activations /= len(student.backbone.blocks)
    return {
        "student and AdamW": _STUDENT_COPIES * kept / _GIB,
        "teacher": kept / _GIB,
        "activations": activations / _GIB,
        "prototype scores": rows * config.head.num_prototypes * _FLOAT32_BYTES * _SCORE_COPIES / _GIB,
    }


def _num_patches(student: Network) -> int:
    count: int = student.backbone.patch_embed.num_patches
    return count


def _activation_bytes(config: PretrainConfig, student: Network) -> float:
    """Counts what autograd keeps for the crops of one image, on tensors without data."""
    crops, precision = config.crops, config.parallel.precision
    parameters = {id(p.untyped_storage()._cdata) for p in student.parameters()}
    kept: dict[Any, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    held = []
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"),
    ):
        for number, size in ((2, crops.global_size_px), (crops.num_local, crops.local_size_px)):
            if number:
                # held until the count is done, so that no storage's address is used twice
                held.append(student.backbone.forward_features(torch.zeros(number, 3, size, size)))
    return float(sum(kept.values()))
