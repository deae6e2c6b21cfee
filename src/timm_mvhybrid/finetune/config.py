"""All that decides a fine-tuning run: sections of frozen dataclasses, each field with its unit, and named starting points.

Of neither method are hyperparameters public: these are this package's, STAMP's mostly those of SEAL (arXiv 2602.14177).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from ..runtime.errors import PretrainError
from ..ssl.config import CollapseConfig, CropConfig, HeadConfig, LossConfig, ModelConfig, OptimizerConfig
from ..training.config import AdamWConfig, CheckpointConfig, LogConfig, ParallelConfig
from ..training.settings import require
from .data import CohortConfig
from .method_config import MintConfig, MintRunConfig, StampConfig, StampRunConfig

_DATA = ("sources", "num_workers", "max_corrupt", "name", "obtained", "license", "hub_datasets")
_FREE = ("probe", *(f"data.{name}" for name in _DATA))


@dataclass(frozen=True, kw_only=True)
class DataConfig(CohortConfig):
    """Which cohorts, and what the model card says of them."""

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="ROOT")]
    """Folders in HEST's layout (patches/ with adata/ or transcripts/), or manifests (.json) with weights and panels."""
    pathways: Annotated[Path | None, arg(aliases=("--pathways",), metavar="FILE.gmt")] = None
    """GMT file of gene sets to score in every patch."""
    name: str | None = None
    """Name of the data, for the model card."""
    obtained: str | None = None
    """Where the data are from, for the model card."""
    license: str | None = None
    """Licence of the data, for the model card."""
    hub_datasets: tuple[str, ...] = ()
    """Data sets on the Hub, for the model card."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """The encoder that is fine-tuned."""

    name: Annotated[str, arg(aliases=("--model",))] = ModelConfig.name
    """Any timm VisionTransformer; 'timm-mvhybrid models' lists ours."""
    weights: Annotated[Path | None, arg(aliases=("--checkpoint",), metavar="FILE")] = None
    """Start from the weights of this file. Excludes pretrained."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is measured of the encoder on held-out patches: at the start, every so many steps, and at the end."""

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
class MintSettings(MintRunConfig):
    """A run of MINT."""

    free: ClassVar[tuple[str, ...]] = (
        *MintRunConfig.free,
        *_FREE,
        "mint.validate_every_steps",
        "mint.validation_batch_size",
    )
    architecture: ClassVar[tuple[str, ...]] = (
        *MintRunConfig.architecture,
        "mint.st_start",
        "mint.st_writes",
        "resolved.panels",
    )

    data: DataConfig
    num_steps: int = 10_000
    """Optimiser steps."""
    batch_size: int = 256
    """Patches per optimiser step, over all processes and backward passes."""
    seed: int = 0
    """Seed of new weights, order, crops, colours, and of what is held out."""
    model: EncoderConfig = field(default_factory=EncoderConfig)
    loss: LossConfig = field(
        default_factory=lambda: LossConfig(regularizer="none", teacher_temperature_warmup_steps=1000)
    )
    optimizer: OptimizerConfig = field(
        # 1e-4 for a batch of 256
        default_factory=lambda: OptimizerConfig(
            base_learning_rate=2e-4,
            warmup_steps=500,
            final_weight_decay=0.04,
            freeze_last_layer_steps=100,
            teacher_momentum=0.996,
        )
    )
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_steps=500))
    probe: ProbeConfig = field(default_factory=ProbeConfig)


@dataclass(frozen=True, kw_only=True)
class StampSettings(StampRunConfig):
    """A run of STAMP."""

    free: ClassVar[tuple[str, ...]] = (
        *StampRunConfig.free,
        *_FREE,
        "stamp.validate_every_steps",
        "stamp.validation_batch_size",
    )
    architecture: ClassVar[tuple[str, ...]] = (
        *StampRunConfig.architecture,
        "stamp.hidden_dims",
        "crops.global_size_px",
        "resolved.pathways",
    )

    data: DataConfig
    num_steps: int = 5_000
    """Optimiser steps."""
    seed: int = 0
    """Seed of new weights, order, dropout, and of what is held out."""
    model: EncoderConfig = field(default_factory=EncoderConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_steps=500))
    probe: ProbeConfig = field(default_factory=ProbeConfig)


def check_stamp(config: StampSettings) -> None:
    """Refuses a run of STAMP without gene sets, which would only be found missing after all cohorts were read.

    Raises:
        PretrainError: There are none.
    """
    if config.data.pathways is None:
        raise PretrainError("`pathways` is not given; STAMP needs gene sets: give `pathways=FILE.gmt`")


def mint(**given: Any) -> MintSettings:
    """MINT with this package's defaults."""
    return MintSettings(**given)


def mint_smoke(**given: Any) -> MintSettings:
    """MINT of a tiny model, heads and crops: minutes on two cores, to see that everything works."""
    return MintSettings(
        **given,
        num_steps=200,
        batch_size=16,
        model=EncoderConfig(name="test_mvhybrid"),
        head=HeadConfig(num_prototypes=256, hidden_dim=128, bottleneck_dim=64, separate_ibot_head=False),
        loss=LossConfig(regularizer="none", teacher_temperature_warmup_steps=30),
        crops=CropConfig(global_size_px=128, local_size_px=64, num_local=2),
        optimizer=OptimizerConfig(
            base_learning_rate=4e-3,
            warmup_steps=20,
            final_weight_decay=0.04,
            freeze_last_layer_steps=1,
            teacher_momentum=0.97,
        ),
        mint=MintConfig(validate_every_steps=50),
        monitor=CollapseConfig(log_every_steps=1, collectives_every_steps=0),
        **_SMOKE,
    )


def stamp(**given: Any) -> StampSettings:
    """STAMP with the numbers of SEAL."""
    return StampSettings(**given)


def stamp_smoke(**given: Any) -> StampSettings:
    """STAMP of a tiny model and heads: minutes on two cores, to see that everything works."""
    return StampSettings(
        **given,
        num_steps=200,
        batch_size=32,
        model=EncoderConfig(name="test_mvhybrid"),
        stamp=StampConfig(hidden_dims=(128, 64), validate_every_steps=50),
        crops=CropConfig(global_size_px=128, num_local=0),
        optimizer=AdamWConfig(
            base_learning_rate=6e-3, warmup_steps=20, final_weight_decay=0.04, freeze_last_layer_steps=0
        ),
        monitor=LogConfig(log_every_steps=1, collectives_every_steps=0),
        **_SMOKE,
    )


_SMOKE: dict[str, Any] = {
    "parallel": ParallelConfig(device="cpu"),
    "checkpoint": CheckpointConfig(every_steps=50),
    "probe": ProbeConfig(num_components=16),
}
MINT_PRESETS: dict[str, Callable[..., MintSettings]] = {"default": mint, "smoke": mint_smoke}
STAMP_PRESETS: dict[str, Callable[..., StampSettings]] = {"default": stamp, "smoke": stamp_smoke}
