"""What any training run is told, each field with its unit; a recipe adds sections of its own.

A resolved configuration is written beside the run's outputs as JSON; :mod:`config_file` reads it back. Schedules count
optimiser steps, never epochs, so that they do not change with the number of samples or of processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ..runtime.errors import PretrainError
from .settings import require


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW and its schedules."""

    base_learning_rate: float = 2e-3
    """Peak learning rate for a batch of 1024; it is scaled by √(batch / 1024)."""
    final_learning_rate: float = 1e-6
    """Learning rate at the last step."""
    warmup_steps: int = 4_930
    """Steps over which it rises from 0."""
    weight_decay: float = 0.04
    """Weight decay at the first step."""
    final_weight_decay: float = 0.4
    """Weight decay at the last step."""
    decay_ssm: bool = True
    """Whether decay rates (A_log) and EinFFT's matrices are decayed as the published models were."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Momenta of AdamW."""
    clip_norm: float = 3.0
    """Largest gradient norm of backbone and of each head; 0 for no limit."""
    patch_embed_multiplier: float = 0.2
    """Factor of the patch embedding's learning rate."""
    layer_decay: float = 1.0
    """Factor of the learning rate from a block to the one before it."""
    freeze_last_layer_steps: int = 493
    """Steps during which last layers, such as DINOv2's prototypes, do not change."""

    def __post_init__(self) -> None:
        require(
            self.base_learning_rate > 0, "optimizer.base_learning_rate", self.base_learning_rate, "above 0"
        )
        for name in (
            "final_learning_rate",
            "warmup_steps",
            "weight_decay",
            "final_weight_decay",
            "clip_norm",
        ):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "at least 0")
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay", self.layer_decay, "above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the work is laid out over devices; it changes speed and memory, not the recipe."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA if there is any."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type. Parameters are float32; scans and EinFFT stay float32."""
    sharding: Literal["auto", "none", "full", "hybrid"] = "auto"
    """FSDP2: over all processes (full), within groups that are replicated (hybrid); auto shards if there are several."""
    shard_size: int = 0
    """Processes of a group of hybrid; 0 for those of one node."""
    activation_checkpointing: bool = False
    """Compute each block twice instead of keeping its activations."""
    compile: bool = False
    """Compile each block by torch.compile."""
    accumulate: int = 1
    """Backward passes per optimiser step. Sinkhorn-Knopp and KoLeo see one pass at a time."""
    tf32: bool = True
    """CUDA: float32 products by TensorFloat-32."""
    threads: int = 0
    """CPU: threads of each process; 0 leaves it to torch."""

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, "parallel.accumulate", self.accumulate, "at least 1")
        require(self.shard_size >= 0, "parallel.shard_size", self.shard_size, "at least 0")
        require(self.threads >= 0, "parallel.threads", self.threads, "at least 0")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run."""

    every_steps: int = 493
    """Steps between two checkpoints; the last step is saved in any case."""
    keep: int = 3
    """Newest checkpoints to keep; 0 keeps all. The best by the probe is kept beside them."""
    asynchronous: bool = True
    """Write while training goes on."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "checkpoint.every_steps", self.every_steps, "at least 1")
        require(self.keep >= 0, "checkpoint.keep", self.keep, "at least 0")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is watched while the run goes on."""

    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write TensorBoard files too."""
    collectives_every_steps: int = 500
    """Steps between two that are profiled for the time of collectives, with several processes; 0 for none."""

    def __post_init__(self) -> None:
        every = self.collectives_every_steps
        require(every >= 0, "monitor.collectives_every_steps", every, "at least 0")
        require(self.log_every_steps >= 1, "monitor.log_every_steps", self.log_every_steps, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run of any objective.

    Attributes:
        free: Settings, and sections of them, that change speed, memory, or what is written, and not what is learned.
        architecture: Those that the shapes of the weights depend on.
    """

    free: ClassVar[tuple[str, ...]] = (
        "output",
        "checkpoint",
        "monitor",
        "parallel.device",
        "parallel.sharding",
        "parallel.shard_size",
        "parallel.activation_checkpointing",
        "parallel.compile",
        "parallel.tf32",
        "parallel.threads",
    )
    architecture: ClassVar[tuple[str, ...]] = ()

    output: Path
    """Folder of the run; a run that is there already is resumed."""
    num_steps: int
    """Optimiser steps."""
    batch_size: int
    """Samples per optimiser step, over all processes and backward passes."""
    seed: int = 0
    """Seed of weights, order and everything else that is drawn."""
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(
            self.optimizer.warmup_steps <= self.num_steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"at most num_steps, which is {self.num_steps}",
        )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up: base · √(batch_size / 1024)."""
        return self.optimizer.base_learning_rate * (self.batch_size / 1024) ** 0.5

    def images_per_pass(self, world_size: int) -> int:
        """Divides the batch among processes and backward passes.

        Raises:
            PretrainError: The batch cannot be divided evenly.
        """
        parts = world_size * self.parallel.accumulate
        if self.batch_size % parts:
            raise PretrainError(
                f"batch_size is {self.batch_size}, which {world_size} processes × parallel.accumulate "
                f"{self.parallel.accumulate} do not divide; take a multiple of {parts}"
            )
        return self.batch_size // parts
