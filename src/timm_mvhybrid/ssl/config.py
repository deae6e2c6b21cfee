"""What self-distillation is told: model, heads, losses, crops and masks, each field with its unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ..runtime.errors import PretrainError
from ..training.config import AdamWConfig, LogConfig, RunConfig
from ..training.settings import JsonObject, require, require_range, require_share


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
            raise PretrainError("`model.pretrained` and `model.weights` exclude each other; give one of them")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The projection heads: class tokens (DINO) and patch tokens (iBOT)."""

    num_prototypes: int = 65_536
    """Prototypes of each head."""
    hidden_dim: int = 2048
    """Width of the hidden layers."""
    bottleneck_dim: int = 256
    """Width in front of the prototypes."""
    num_layers: int = 3
    """Layers in front of the prototypes."""
    separate_ibot_head: bool = True
    """Whether patch tokens have a head of their own."""
    learn_gain: bool = True
    """Whether the length of each prototype is learned, as in DINOv2's code; otherwise it is 1."""
    ibot_chunk_rows: int = 512
    """Masked patches whose prototype scores are in memory at a time; 0 for all at once."""

    def __post_init__(self) -> None:
        for name in ("num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers"):
            require(getattr(self, name) >= 1, f"head.{name}", getattr(self, name), "at least 1")
        require(self.ibot_chunk_rows >= 0, "head.ibot_chunk_rows", self.ibot_chunk_rows, "at least 0")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective: DINO on class tokens, iBOT on masked patches, and what keeps features apart."""

    dino_weight: float = 1.0
    """Weight of the class-token loss."""
    ibot_weight: float = 1.0
    """Weight of the masked-patch loss."""
    centering: Literal["sinkhorn_knopp", "centering"] = "sinkhorn_knopp"
    """How teacher scores become targets: optimal transport over the batch, or a running mean."""
    sinkhorn_iterations: int = 3
    """Iterations of sinkhorn_knopp."""
    center_momentum: float = 0.9
    """Momentum of the running mean of centering."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature_start: float = 0.04
    """Temperature of the teacher's targets at the first step."""
    teacher_temperature: float = 0.06
    """Temperature of the teacher's targets after the warm-up."""
    teacher_temperature_warmup_steps: int = 14_790
    """Steps over which it rises."""
    regularizer: Literal["koleo", "kde", "none"] = "koleo"
    """What spreads class tokens: distance to the nearest (KoLeo), kernel density (KDE), or nothing."""
    regularizer_weight: float = 0.1
    """Its weight."""
    regularizer_scope: Literal["rank", "world"] = "rank"
    """Among which images: those of a process, as DINOv2 does, or all of a step; then results do not depend on the number of processes."""
    kde_concentration: float = 5.0
    """Concentration κ of the kernel of KDE."""

    def __post_init__(self) -> None:
        for name in ("student_temperature", "teacher_temperature_start", "teacher_temperature"):
            require(getattr(self, name) > 0, f"loss.{name}", getattr(self, name), "above 0")
        for name in ("dino_weight", "ibot_weight", "regularizer_weight", "teacher_temperature_warmup_steps"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "at least 0")
        require(
            self.sinkhorn_iterations >= 1, "loss.sinkhorn_iterations", self.sinkhorn_iterations, "at least 1"
        )
        require_share("loss.center_momentum", self.center_momentum)


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """What student and teacher see of a patch."""

    global_size_px: int = 256
    """Side of the two global crops in px."""
    local_size_px: int = 112
    """Side of the local crops in px."""
    num_local: int = 8
    """Local crops of a patch."""
    global_scale: tuple[float, float] = (0.32, 1.0)
    """Fraction of the patch's area that a global crop takes."""
    local_scale: tuple[float, float] = (0.05, 0.32)
    """Fraction of the patch's area that a local crop takes."""
    augmentation: Literal["paper", "paper_pil"] = "paper"
    """Colour and blur on the device, or the same by Pillow in the workers, for comparison."""
    horizontal_flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip."""
    rotation: bool = False
    """Whether crops are turned by multiples of 90°."""
    hed_jitter: float = 0.0
    """Strength of random changes of haematoxylin, eosin and residue, relative; 0 for none."""

    @property
    def num_crops(self) -> int:
        """Crops of a patch: two global ones, then the local ones."""
        return 2 + self.num_local

    def __post_init__(self) -> None:
        for name in ("global_size_px", "local_size_px"):
            require(getattr(self, name) >= 1, f"crops.{name}", getattr(self, name), "at least 1")
        require(self.num_local >= 0, "crops.num_local", self.num_local, "at least 0")
        require_range("crops.global_scale", self.global_scale)
        require_range("crops.local_scale", self.local_scale)
        require_share("crops.horizontal_flip", self.horizontal_flip)
        require_share("crops.vertical_flip", self.vertical_flip)
        require(self.hed_jitter >= 0, "crops.hed_jitter", self.hed_jitter, "at least 0")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which patches of a global crop the student does not see."""

    share: float = 0.5
    """Fraction of the global crops that are masked."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Fraction of the patches that are hidden in those, from and to."""

    def __post_init__(self) -> None:
        require_share("mask.share", self.share)
        require_range("mask.ratio", self.ratio)


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
class CollapseConfig(LogConfig):
    """What is watched while the run goes on."""

    collapse_checks: int = 5
    """Lines in a row below the limits before collapse is reported."""
    min_feature_std: float = 0.01
    """Smallest standard deviation of normalised class features, times √dim."""
    min_rankme: float = 2.0
    """Smallest effective rank of class features."""
    stop_on_collapse: bool = False
    """Whether a collapse stops the run instead of being reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.collapse_checks >= 1, "monitor.collapse_checks", self.collapse_checks, "at least 1")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(RunConfig):
    """A run of student and teacher; a recipe adds its data."""

    architecture: ClassVar[tuple[str, ...]] = (
        "model.name",
        "model.arguments",
        "head",
        "crops.global_size_px",
    )

    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    monitor: CollapseConfig = field(default_factory=CollapseConfig)
