"""All that decides a pretraining run: sections of frozen dataclasses, each field with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..data import Edge
from ..runtime.errors import PretrainError
from ..ssl.config import CropConfig, HeadConfig, LossConfig, MaskConfig
from ..training.config import AdamWConfig, CheckpointConfig, LogConfig, ParallelConfig, RunConfig
from ..training.settings import JsonObject, require, require_share

__all__ = [
    "CheckpointConfig",
    "CropConfig",
    "DataConfig",
    "HeadConfig",
    "LossConfig",
    "MaskConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PretrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone of student and teacher."""

    name: str = "mvhybrid_small_patch16_256"
    """Any timm VisionTransformer; 'timm-mvhybrid models' lists ours."""
    arguments: JsonObject = field(default_factory=dict)
    """Further arguments of timm.create_model."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the student, 0 to 1."""
    pretrained: bool = False
    """Start from the weights that timm downloads."""
    weights: Path | None = None
    """Start from the weights of this file. Excludes pretrained."""

    def __post_init__(self) -> None:
        require(0 <= self.drop_path_rate < 1, "model.drop_path_rate", self.drop_path_rate, "in [0, 1)")
        if self.pretrained and self.weights is not None:
            raise PretrainError("model.pretrained and model.weights exclude each other; give one of them")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where patches come from, and what the model card says of it."""

    sources: tuple[str, ...]
    """Manifests, folders of images, patch h5, coordinate h5, slides or tars (shard-{000..009}.tar)."""
    slides: str | None = None
    """Folder of the slides of coordinate h5 among the sources, or their slide; by default they lie beside."""
    edge: Edge = "auto"
    """Coordinate h5: black or white beyond the slide's edge, or skip to leave such patches out; auto is black for files
    that TRIDENT or CLAM wrote, and white for others."""
    num_workers: int = 4
    """Processes of each rank that read and crop, at most one a core; 0 reads in the main process."""
    max_corrupt: int = 0
    """Unreadable patches that are counted, reported and replaced before the run stops."""
    name: str | None = None
    """Name of the data, for the model card."""
    obtained: str | None = None
    """Where the data are from, for the model card."""
    license: str | None = None
    """Licence of the data, for the model card."""
    hub_datasets: tuple[str, ...] = ()
    """Data sets on the Hub, for the model card."""

    def __post_init__(self) -> None:
        if isinstance(self.sources, Sequence):
            require(len(self.sources) > 0, "data.sources", "empty", "at least one path")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "at least 0")
        require(self.max_corrupt >= 0, "data.max_corrupt", self.max_corrupt, "at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(AdamWConfig):
    """AdamW, its schedules, and the teacher's."""

    teacher_momentum: float = 0.992
    """Momentum of the teacher at the first step; it rises to final_teacher_momentum by a cosine."""
    final_teacher_momentum: float = 1.0
    """Momentum of the teacher at the last step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("teacher_momentum", "final_teacher_momentum"):
            require_share(f"optimizer.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(LogConfig):
    """What is watched while the run goes on."""

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
        super().__post_init__()
        for name in ("collapse_checks", "probe_every_steps", "probe_batch_size"):
            require(getattr(self, name) >= 1, f"monitor.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """A whole run."""

    free: ClassVar[tuple[str, ...]] = (
        *RunConfig.free,
        "data.sources",
        "data.slides",
        "data.edge",
        "data.num_workers",
        "data.max_corrupt",
        "data.name",
        "data.obtained",
        "data.license",
        "data.hub_datasets",
        "head.ibot_chunk_rows",
    )
    architecture: ClassVar[tuple[str, ...]] = (
        "model.name",
        "model.arguments",
        "head",
        "crops.global_size_px",
    )

    data: DataConfig
    num_steps: int = 98_600
    """Optimiser steps."""
    batch_size: int = 1536
    """Patches per optimiser step, over all processes and backward passes."""
    seed: int = 0
    """Seed of weights, order, crops, colours and masks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
