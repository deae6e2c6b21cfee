"""What MINT and STAMP are told of themselves: weights of losses, token, adapters; importable without lightly and peft."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..ssl.config import CropConfig, DistillationConfig, HeadConfig, LossConfig, ModelConfig
from ..training.config import AdamWConfig, RunConfig
from ..training.settings import require

Anchor = Literal["cosine", "mse"]


@dataclass(frozen=True, kw_only=True)
class MintConfig:
    """Weights of the losses, and the ST token."""

    anchor_weight: float = 1.0
    """Weight of the distance from the frozen encoder; that of self-distillation is loss.dino_weight."""
    spot_weight: float = 1.0
    """Weight of the regression of a patch's expression from its ST token."""
    token_weight: float = 1.0
    """Weight of the regression of the expression in its cells from patch tokens."""
    anchor: Anchor = "cosine"
    """Distance from the frozen encoder: 1 − cosine, or the mean squared error."""
    st_start: int | None = None
    """First block with the ST token; by default the first attention block, or 0 where all are state-space."""
    st_writes: bool = False
    """Whether attention may learn to see the ST token; then the encoder alone is no longer what was trained."""
    validate_every_steps: int = 500
    """Steps between two validations; the first and the last step are validated in any case."""
    validation_batch_size: int = 64
    """Patches of a batch of the validation."""

    def __post_init__(self) -> None:
        for name in ("anchor_weight", "spot_weight", "token_weight"):
            require(getattr(self, name) >= 0, f"mint.{name}", getattr(self, name), "at least 0")
        for name in ("validate_every_steps", "validation_batch_size"):
            require(getattr(self, name) >= 1, f"mint.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class MintRunConfig(DistillationConfig):
    """A run of MINT, without its data."""

    mint: MintConfig = field(default_factory=MintConfig)
    head: HeadConfig = field(
        default_factory=lambda: HeadConfig(num_prototypes=8192, separate_ibot_head=False)
    )
    loss: LossConfig = field(default_factory=lambda: LossConfig(regularizer="none"))

    def __post_init__(self) -> None:
        super().__post_init__()
        separate = self.head.separate_ibot_head
        require(not separate, "head.separate_ibot_head", separate, "False, because no patches are masked")


@dataclass(frozen=True, kw_only=True)
class StampConfig:
    """Adapters, pathway encoder and losses."""

    rank: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """Their output is times alpha / rank."""
    dropout: float = 0.15
    """Dropout before the adapters."""
    targets: tuple[str, ...] = ()
    """Ends of the names of adapted layers; by default all large linear layers."""
    hidden_dims: tuple[int, ...] = (1024, 512)
    """Widths of the pathway encoder; the last one is that of the shared space."""
    temperature: float = 0.05
    """Of the contrast; it is not learned."""
    contrast_weight: float = 1.0
    """Weight of the contrast."""
    regression_weight: float = 1.0
    """Weight of the regression of pathway scores."""
    validate_every_steps: int = 500
    """Steps between two validations; the first and the last step are validated in any case."""
    validation_batch_size: int = 64
    """Patches of a batch of the validation."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "stamp.temperature", self.temperature, "above 0")
        positive = len(self.hidden_dims) > 0 and min(self.hidden_dims) > 0
        require(positive, "stamp.hidden_dims", self.hidden_dims, "one or more widths above 0")
        for name in ("contrast_weight", "regression_weight"):
            require(getattr(self, name) >= 0, f"stamp.{name}", getattr(self, name), "at least 0")
        for name in ("rank", "validate_every_steps", "validation_batch_size"):
            require(getattr(self, name) >= 1, f"stamp.{name}", getattr(self, name), "at least 1")


# a learning rate of 1e-4 at a batch of 384
_OPTIMIZER = {
    "base_learning_rate": 1e-4 * (1024 / 384) ** 0.5,
    "final_learning_rate": 0.0,
    "warmup_steps": 0,
    "weight_decay": 0.2,
    "final_weight_decay": 0.2,
    "freeze_last_layer_steps": 0,
}


@dataclass(frozen=True, kw_only=True)
class StampRunConfig(RunConfig):
    """A run of STAMP, without its data."""

    architecture: ClassVar[tuple[str, ...]] = ("model.name", "model.arguments", "stamp.rank", "stamp.targets")

    batch_size: int = 384
    """Patches per optimiser step, over all processes and backward passes; the contrast is within a pass."""
    model: ModelConfig = field(default_factory=ModelConfig)
    stamp: StampConfig = field(default_factory=StampConfig)
    optimizer: AdamWConfig = field(default_factory=lambda: AdamWConfig(**_OPTIMIZER))
    crops: CropConfig = field(default_factory=lambda: CropConfig(global_size_px=256, num_local=0))
