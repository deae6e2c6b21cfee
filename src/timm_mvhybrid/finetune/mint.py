"""MINT: an encoder learns molecular state in a token of its own, and keeps what it knew of morphology.

Source: MINT (arXiv 2603.07895) for the four losses and the ST token; its code, weights and hyperparameters are not
public, so everything else is this package's specification.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ..export.companions import ST_FILE
from ..export.training_checkpoint import ENCODER_FILE
from ..ops.precision import at_least_float32, autocast_disabled
from ..ssl.distillation import SelfDistillation, Views
from ..ssl.student_teacher import Network
from ..training.world import World
from .data import FinetuneData
from .expression_model import facts_of
from .method_config import Anchor
from .method_config import MintConfig as MintConfig
from .method_config import MintRunConfig as MintRunConfig
from .mint_student import MintStudent
from .training_data import CohortBatches, normalise, panel_loss, targets_of
from .written_weights import write_encoder, write_tensors


class MintBatch(NamedTuple):
    """What ``losses`` takes.

    Attributes:
        views: Crops for self-distillation.
        image: The whole patches, neither cropped nor changed in colour, (B, 3, G, G), normalised.
        targets: What was measured of them; see ``finetune.data``.
    """

    views: Views
    image: Tensor
    targets: dict[str, Tensor]


class MintObjective(CohortBatches, SelfDistillation):
    """Self-distillation of the class token, an anchor to the frozen encoder, and two regressions of expression.

    total = DINO + w_a · anchor + w_s · spots + w_t · cells. The anchor is the mean of two distances from the encoder as
    it was at the start, that of the class token and the mean over patch tokens, so that neither drowns in the other.
    Anchor and regressions see the same whole patch: colours that were changed would be no ground for either. Batches of
    which nothing was measured add 0 to the regressions.

    Args:
        config: The run.
        world: Its processes.
        data: Patches and what was measured of them.

    Attributes:
        frozen: The encoder as it was at the start.

    Raises:
        PretrainError: The model cannot be trained this way.
        FinetuneError: Its backbone cannot carry an ST token, or tokens do not fit the cells of a panel.
    """

    name = "MINT"

    def __init__(self, config: MintRunConfig, world: World, data: FinetuneData) -> None:
        self.data = data
        self._mint = config.mint
        self._statistics = {
            prefix: {
                name: tuple(
                    torch.as_tensor(
                        getattr(panel, f"{prefix}{kind}"), dtype=torch.float32, device=world.device
                    )
                    for kind in ("mean", "std")
                )
                for name, panel in data.panels.items()
                if not prefix or panel.grid is not None
            }
            for prefix in ("", "token_")
        }
        super().__init__(config, world, data.patches, mask=None)
        self.data_fingerprint = data.fingerprint()

    def build_networks(self) -> tuple[Network, Network]:
        """Builds student and teacher, and keeps the encoder that both begin with."""
        network, teacher = super().build_networks()
        self.frozen: Any = copy.deepcopy(teacher.backbone).to(self.world.device)
        student = MintStudent(
            network,
            self.data.panels,
            image_size_px=self.config.crops.global_size_px,
            st_start=self._mint.st_start,
            st_writes=self._mint.st_writes,
        )
        return student.train(), teacher

    def prepare(self, batch: Any, step: int) -> Any:
        """Augments crops, normalises whole patches, and moves targets to the device."""
        device = self.world.device
        return MintBatch(
            super().prepare(batch["crops"], step),
            normalise(batch["image"], self.mean, self.std, device),
            targets_of(batch, device),
        )

    def losses(self, batch: MintBatch, step: int) -> Mapping[str, Tensor]:
        """Computes the four losses, each times its weight."""
        found = self.compare(batch.views, step, image=batch.image)
        output: Any = found.student_output
        with torch.no_grad():
            frozen = self.frozen.forward_features(batch.image)
        mint = self._mint
        parts = {
            **{name: value for name, value in found.parts.items() if name != "total"},
            "anchor": mint.anchor_weight * self._anchor(output, frozen),
            "spots": mint.spot_weight * panel_loss(output.spots, batch.targets, self._statistics[""].get),
        }
        if output.cells:
            cells = panel_loss(output.cells, batch.targets, self._statistics["token_"].get, "token_")
            parts["cells"] = mint.token_weight * cells
        dtype = found.parts["total"].dtype
        return {**parts, "total": torch.stack([part.to(dtype) for part in parts.values()]).sum()}

    def _anchor(self, output: Any, frozen: Tensor) -> Tensor:
        before = (frozen[:, 0], frozen[:, self.frozen.num_prefix_tokens :])
        with autocast_disabled(frozen.device.type):
            distances = [
                anchor_distance(now, then, self._mint.anchor)
                for now, then in zip((output.class_token, output.patch_tokens), before, strict=True)
            ]
        return torch.stack(distances).mean()

    def write_weights(self, folder: Path) -> Path:
        """Writes the student's backbone, an ordinary encoder; with ST token and heads; and the teacher's backbone."""
        super().write_weights(folder)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(self.student, options=options)
        without = ("dino_head.", "ibot_head.")
        kept = {
            k: v for k, v in weights.items() if not k.startswith(without) and not k.endswith("mask_token")
        }
        facts = facts_of(self.student, self.data.panels, self.frozen, kept)
        write_tensors(folder / ST_FILE, kept, self.world, facts)
        return write_encoder(
            folder / ENCODER_FILE,
            {k.removeprefix("backbone."): v for k, v in kept.items() if k.startswith("backbone.")},
            self.student.backbone,
            self.world,
        )


def anchor_distance(features: Tensor, frozen: Tensor, kind: Anchor) -> Tensor:
    """Averages the distance of features from frozen ones, 1 − cosine or mean squared error.

    Args:
        features: (..., dim).
        frozen: Of the same shape.
        kind: "cosine" or "mse".

    Returns:
        A scalar, at least in float32.
    """
    features, frozen = at_least_float32(features), at_least_float32(frozen)
    if kind == "mse":
        return F.mse_loss(features, frozen)
    return (1 - F.cosine_similarity(features, frozen, dim=-1)).mean()
