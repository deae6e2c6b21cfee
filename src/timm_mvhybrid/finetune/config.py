"""All that decides a fine-tuning run: sections of frozen dataclasses, each field with its unit, and named starting points.

Of neither method are hyperparameters public: these are this package's, STAMP's mostly those of SEAL (arXiv 2602.14177).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ..runtime.errors import PretrainError
from ..ssl.config import CollapseConfig, CropConfig, DistillationConfig, HeadConfig, LossConfig, ModelConfig
from ..ssl.config import OptimizerConfig as TeacherOptimizerConfig
from ..training.config import AdamWConfig, CheckpointConfig, LogConfig, ParallelConfig, RunConfig
from ..training.settings import require, require_share
from .data import CohortConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig(CohortConfig):
    """Which cohorts, and what the model card says of them."""

    name: str | None = None
    """Name of the data, for the model card."""
    obtained: str | None = None
    """Where the data are from, for the model card."""
    license: str | None = None
    """Licence of the data, for the model card."""
    hub_datasets: tuple[str, ...] = ()
    """Data sets on the Hub, for the model card."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is measured of the encoder on held-out patches: at the start, every so many steps, and at the end."""

    every_steps: int = 500
    """Steps between two evaluations."""
    batch_size: int = 64
    """Patches of a batch, on each process."""
    max_train: int = 2000
    """Patches of training samples that the ridge regression is fitted on, of each panel; evenly taken."""
    max_validation: int = 2000
    """Held-out patches that are measured, of each panel; evenly taken."""
    num_genes: int = 50
    """Most variable genes of a panel whose correlation is measured."""
    num_components: int = 256
    """Principal components of the ridge regression; fewer where features or patches are fewer."""
    num_tokens: int = 16
    """Patch tokens of each image whose drift from the frozen encoder is measured; evenly taken."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            require(getattr(self, name) >= 1, f"probe.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class STConfig:
    """The ST token."""

    start: int | None = None
    """First block with the token; by default the first attention block, 0 where there is none."""
    writes: bool = False
    """Whether class and patch tokens may learn to see it; then the exported backbone has not their features."""


@dataclass(frozen=True, kw_only=True)
class MintLossConfig(LossConfig):
    """MINT's objective: self-distillation, anchor to the frozen encoder, expression of spots and of token cells."""

    ibot_weight: float = 0.0
    """Not used: MINT distils class tokens alone."""
    regularizer: Literal["koleo", "kde", "none"] = "none"
    """What spreads class tokens: distance to the nearest (KoLeo), kernel density (KDE), or nothing."""
    teacher_temperature_warmup_steps: int = 1000
    """Steps over which the teacher's temperature rises."""
    anchor_weight: float = 1.0
    """Weight of the anchor of class and patch tokens to the frozen encoder."""
    anchor: Literal["cosine", "mse"] = "cosine"
    """Its distance: 1 − cosine, or the mean squared difference; the mean over class and patch tokens."""
    spot_weight: float = 1.0
    """Weight of the regression of a patch's expression from the ST token."""
    patch_weight: float = 1.0
    """Weight of the regression of single transcripts, in cells of the token grid, from patch tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ibot_weight == 0, "loss.ibot_weight", self.ibot_weight, "0: MINT masks no patches")
        for name in ("anchor_weight", "spot_weight", "patch_weight"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class MintConfig(DistillationConfig):
    """A run of MINT."""

    free: ClassVar[tuple[str, ...]] = (
        *DistillationConfig.free,
        "probe",
        "data.sources",
        "data.num_workers",
        "data.max_corrupt",
        "data.name",
        "data.obtained",
        "data.license",
        "data.hub_datasets",
    )
    architecture: ClassVar[tuple[str, ...]] = (*DistillationConfig.architecture, "st", "resolved.panels")

    data: DataConfig
    num_steps: int = 10_000
    """Optimiser steps."""
    batch_size: int = 256
    """Patches per optimiser step, over all processes and backward passes."""
    seed: int = 0
    """Seed of new weights, order, crops, colours, and of what is held out."""
    head: HeadConfig = field(default_factory=lambda: HeadConfig(separate_ibot_head=False))
    loss: MintLossConfig = field(default_factory=MintLossConfig)
    st: STConfig = field(default_factory=STConfig)
    optimizer: TeacherOptimizerConfig = field(
        default_factory=lambda: TeacherOptimizerConfig(
            base_learning_rate=2e-4,
            warmup_steps=500,
            final_weight_decay=0.04,
            freeze_last_layer_steps=100,
            teacher_momentum=0.996,
        )
    )
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_steps=500))
    monitor: CollapseConfig = field(default_factory=CollapseConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, by peft."""

    r: int = 8
    """Rank."""
    alpha: float = 16
    """Scale: an adapter counts alpha / r times."""
    dropout: float = 0.15
    """Dropout in front of adapters, 0 to 1."""
    targets: tuple[str, ...] = ()
    """Names of layers that are adapted; by default qkv, attn.proj, fc1, fc2, in_proj and out_proj."""

    def __post_init__(self) -> None:
        require(self.r >= 1, "lora.r", self.r, "at least 1")
        require(self.alpha > 0, "lora.alpha", self.alpha, "above 0")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class PathwayHeadConfig:
    """What brings images and pathways together."""

    hidden_dim: int = 1024
    """Width of the hidden layer of the pathway encoder."""
    embedding_dim: int = 512
    """Width of the space in which images and pathways are compared."""

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "embedding_dim"):
            require(getattr(self, name) >= 1, f"pathway.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class StampLossConfig:
    """STAMP's objective: images and their pathways alike, and pathways told from images."""

    contrast_weight: float = 1.0
    """Weight of the symmetric InfoNCE loss."""
    regression_weight: float = 1.0
    """Weight of the regression of standardised pathway scores."""
    temperature: float = 0.05
    """Temperature of InfoNCE, fixed."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "loss.temperature", self.temperature, "above 0")
        for name in ("contrast_weight", "regression_weight"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class StampCropConfig:
    """How patches enter."""

    size_px: int = 256
    """Side of a patch in px."""
    horizontal_flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.5
    """Probability of a vertical flip."""

    def __post_init__(self) -> None:
        require(self.size_px >= 1, "crops.size_px", self.size_px, "at least 1")
        for name in ("horizontal_flip", "vertical_flip"):
            require_share(f"crops.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class StampConfig(RunConfig):
    """A run of STAMP."""

    free: ClassVar[tuple[str, ...]] = MintConfig.free
    architecture: ClassVar[tuple[str, ...]] = (
        "model.name",
        "model.arguments",
        "lora.r",
        "lora.targets",
        "pathway",
        "crops.size_px",
        "resolved.pathways",
    )

    data: DataConfig
    num_steps: int = 5_000
    """Optimiser steps."""
    batch_size: int = 384
    """Patches per optimiser step, over all processes and backward passes."""
    seed: int = 0
    """Seed of new weights, order, flips, dropout, and of what is held out."""
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    pathway: PathwayHeadConfig = field(default_factory=PathwayHeadConfig)
    loss: StampLossConfig = field(default_factory=StampLossConfig)
    crops: StampCropConfig = field(default_factory=StampCropConfig)
    optimizer: AdamWConfig = field(
        # 1e-4 for a batch of 384
        default_factory=lambda: AdamWConfig(
            base_learning_rate=1e-4 * (1024 / 384) ** 0.5,
            warmup_steps=0,
            weight_decay=0.2,
            final_weight_decay=0.2,
            freeze_last_layer_steps=0,
        )
    )
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_steps=500))
    monitor: LogConfig = field(default_factory=LogConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.pathways is None:
            raise PretrainError("`pathways` is missing; STAMP needs gene sets: give a GMT file")


def mint(*, output: Path, data: DataConfig) -> MintConfig:
    """MINT with this package's defaults."""
    return MintConfig(output=output, data=data)


def mint_smoke(*, output: Path, data: DataConfig) -> MintConfig:
    """MINT of a tiny model, heads and crops: minutes on two cores, to see that everything works."""
    return MintConfig(
        output=output,
        data=data,
        num_steps=200,
        batch_size=16,
        model=ModelConfig(name="test_mvhybrid"),
        head=HeadConfig(num_prototypes=256, hidden_dim=128, bottleneck_dim=64, separate_ibot_head=False),
        loss=MintLossConfig(teacher_temperature_warmup_steps=30),
        crops=CropConfig(global_size_px=128, local_size_px=64, num_local=2),
        optimizer=TeacherOptimizerConfig(
            base_learning_rate=4e-3,
            warmup_steps=20,
            final_weight_decay=0.04,
            freeze_last_layer_steps=1,
            teacher_momentum=0.97,
        ),
        parallel=ParallelConfig(device="cpu"),
        checkpoint=CheckpointConfig(every_steps=50),
        monitor=CollapseConfig(log_every_steps=1, collectives_every_steps=0),
        probe=ProbeConfig(every_steps=100, num_components=16),
    )


def stamp(*, output: Path, data: DataConfig) -> StampConfig:
    """STAMP with the numbers of SEAL."""
    return StampConfig(output=output, data=data)


def stamp_smoke(*, output: Path, data: DataConfig) -> StampConfig:
    """STAMP of a tiny model and heads: minutes on two cores, to see that everything works."""
    return StampConfig(
        output=output,
        data=data,
        num_steps=200,
        batch_size=32,
        model=ModelConfig(name="test_mvhybrid"),
        pathway=PathwayHeadConfig(hidden_dim=128, embedding_dim=64),
        crops=StampCropConfig(size_px=128),
        optimizer=AdamWConfig(
            base_learning_rate=6e-3, warmup_steps=20, final_weight_decay=0.04, freeze_last_layer_steps=0
        ),
        parallel=ParallelConfig(device="cpu"),
        checkpoint=CheckpointConfig(every_steps=50),
        monitor=LogConfig(log_every_steps=1, collectives_every_steps=0),
        probe=ProbeConfig(every_steps=100, num_components=16),
    )


MINT_PRESETS: dict[str, Callable[..., MintConfig]] = {"default": mint, "smoke": mint_smoke}
STAMP_PRESETS: dict[str, Callable[..., StampConfig]] = {"default": stamp, "smoke": stamp_smoke}
