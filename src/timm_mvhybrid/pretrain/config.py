"""All that decides a pretraining run: sections of frozen dataclasses, each field with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..data import Edge
from ..ssl.config import (
    CollapseConfig,
    CropConfig,
    DistillationConfig,
    HeadConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    OptimizerConfig,
)
from ..training.config import CheckpointConfig, ParallelConfig
from ..training.settings import require

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
class MonitorConfig(CollapseConfig):
    """What is watched while the run goes on."""

    probe: Path | None = None
    """Labelled patches for an online probe: a folder per class, or a CSV (see docs/guide/pretrain.md)."""
    probe_counts_layer: str | None = None
    """Where each h5ad of the probe keeps its raw counts: a layer, or raw; X by default."""
    probe_every_steps: int = 1000
    """Steps between two probes."""
    probe_batch_size: int = 64
    """Patches per batch of the probe."""
    by_kind: bool = False
    """Log gradient norms by kind of parameter, and what each block does to the size of tokens; one more forward pass of the
    student a line. Compiled blocks give norms alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("probe_every_steps", "probe_batch_size"):
            require(getattr(self, name) >= 1, f"monitor.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(DistillationConfig):
    """A whole run."""

    free: ClassVar[tuple[str, ...]] = (
        *DistillationConfig.free,
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

    data: DataConfig
    num_steps: int = 98_600
    """Optimiser steps."""
    batch_size: int = 1536
    """Patches per optimiser step, over all processes and backward passes."""
    seed: int = 0
    """Seed of weights, order, crops, colours and masks."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
