"""What any training run is told: optimiser, processes, checkpoints and monitoring, each field with its unit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .settings import require, require_share


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedules, and the teacher's."""

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
    """Steps during which the prototypes do not change."""
    teacher_momentum: float = 0.992
    """Momentum of the teacher at the first step; it rises to final_teacher_momentum by a cosine."""
    final_teacher_momentum: float = 1.0
    """Momentum of the teacher at the last step."""

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
        for name in ("teacher_momentum", "final_teacher_momentum"):
            require_share(f"optimizer.{name}", getattr(self, name))


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
class MonitorConfig:
    """What is watched while the run goes on."""

    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write TensorBoard files too."""
    collectives_every_steps: int = 500
    """Steps between two that are profiled for the time of collectives, with several processes; 0 for none."""
    collapse_checks: int = 5
    """Lines in a row below the limits before collapse is reported."""
    min_feature_std: float = 0.01
    """Smallest standard deviation of normalised class features, times √dim."""
    min_rankme: float = 2.0
    """Smallest effective rank of class features."""
    stop_on_collapse: bool = False
    """Whether a collapse stops the run instead of being reported."""
    probe: Path | None = None
    """Labelled patches for an online probe: a folder per class, or a CSV (see docs/guide/pretrain.md)."""
    probe_counts_layer: str | None = None
    """Where each h5ad of the probe keeps its raw counts: a layer, or raw; X by default."""
    probe_every_steps: int = 1000
    """Steps between two probes."""
    probe_batch_size: int = 64
    """Patches per batch of the probe."""

    def __post_init__(self) -> None:
        every = self.collectives_every_steps
        require(every >= 0, "monitor.collectives_every_steps", every, "at least 0")
        for name in ("log_every_steps", "collapse_checks", "probe_every_steps", "probe_batch_size"):
            require(getattr(self, name) >= 1, f"monitor.{name}", getattr(self, name), "at least 1")
