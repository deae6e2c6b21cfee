"""STAMP: low-rank adapters align the class token with pathway scores of the same patch.

Source: STAMP (arXiv 2606.03644) for the aim, pathways instead of transcripts; its code and hyperparameters are not
public. Rank, dropout, encoder, temperature and optimiser are those of SEAL (arXiv 2602.14177); adapters on all blocks and
alpha 16 are this package's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from ..runtime.ranks import num_ranks
from ..ssl.backbone import create_backbone
from ..ssl.collectives import gather_rows, sum_over_ranks
from ..training.objective import Objective
from ..training.parallelize import parallelize
from ..training.world import World
from ..weights.position_grid import PATCH_GRID, grid_of
from .adapters import lora, merge, save_adapters
from .data import FinetuneData
from .errors import FinetuneError
from .losses import info_nce, masked_squares
from .method_config import StampConfig as StampConfig
from .method_config import StampRunConfig as StampRunConfig
from .training_data import CohortBatches, normalise, targets_of
from .written_weights import write_encoder


class StampOutput(NamedTuple):
    """What the network makes of a batch.

    Attributes:
        image: Embedding of the images, (B, D).
        pathway: Embedding of their pathway scores, (B, D).
        scores: Pathway scores predicted from the images, (B, sets).
        class_token: Class token, (B, dim).
        patch_tokens: Patch tokens, (B, N, dim).
    """

    image: Tensor
    pathway: Tensor
    scores: Tensor
    class_token: Tensor
    patch_tokens: Tensor


class StampNetwork(nn.Module):
    """An encoder with adapters, and what joins it to pathways.

    Args:
        backbone: With adapters.
        num_pathways: Pathways that are scored.
        hidden_dims: Widths of the pathway encoder.
    """

    def __init__(self, backbone: nn.Module, num_pathways: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        inner: Any = backbone
        self.backbone: Any = backbone
        layers: list[nn.Module] = []
        for before, after in pairwise([num_pathways, *hidden_dims]):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.pathway_encoder = nn.Sequential(*layers[:-1])
        dim: int = inner.embed_dim
        self.image_head = nn.Linear(dim, hidden_dims[-1])
        self.score_head = nn.Linear(dim, num_pathways)

    def forward(self, image: Tensor, pathways: Tensor) -> StampOutput:
        """Embeds images (B, 3, H, W), normalised, and pathway scores (B, sets), standardised."""
        tokens = self.backbone.forward_features(image)
        # FSDP warns of outputs that are views
        token, patches = tokens[:, 0].clone(), tokens[:, self.backbone.num_prefix_tokens :].clone()
        return StampOutput(
            self.image_head(token), self.pathway_encoder(pathways), self.score_head(token), token, patches
        )


class StampBatch(NamedTuple):
    """What ``losses`` takes.

    Attributes:
        image: Whole patches, (B, 3, H, W), normalised.
        pathways: Their scores, standardised, 0 where not measured, (B, sets).
        measured: Which were measured, (B, sets).
    """

    image: Tensor
    pathways: Tensor
    measured: Tensor


class StampObjective(CohortBatches, Objective):
    """Symmetric InfoNCE between class token and pathway scores, and a regression of the scores from the class token.

    Every process computes the contrast of the batch of all processes. Patches of which no pathway was measured are left
    out of it, and add 0 to the regression. ``ln_batch`` beside the contrast is what guessing would have: a contrast that
    stays there has learned nothing.

    Args:
        config: The run.
        world: Its processes.
        data: Patches and their pathway scores.

    Attributes:
        network: The network, which is trained.

    Raises:
        FinetuneError: The data have no pathways, or the adapters cannot be where they shall.
        PretrainError: The model cannot be trained this way.
    """

    name = "STAMP"

    def __init__(self, config: StampRunConfig, world: World, data: FinetuneData) -> None:
        if data.pathways is None:
            raise FinetuneError("`data` has no pathway scores; give gene sets by `data.pathways`")
        self.config, self.world, self.data = config, world, data
        self.num_samples, self.data_fingerprint = len(data.patches), data.fingerprint()
        torch.manual_seed(config.seed)
        self._num_sets = len(data.pathways.names)
        self.network = self._build().train()
        self.trained = self.network
        self.network.to(world.device)
        backbone = self.network.backbone
        self.mean, self.std = (tuple(backbone.pretrained_cfg[name]) for name in ("mean", "std"))
        self._grid = grid_of(backbone)
        parallelize(self.network, world.mesh, config.parallel, recompute=True)

    def _build(self) -> StampNetwork:
        model, stamp = self.config.model, self.config.stamp
        backbone = create_backbone(
            model.name,
            {"img_size": self.config.crops.global_size_px, **model.arguments},
            drop_path_rate=model.drop_path_rate,
            pretrained=model.pretrained,
            checkpoint=model.weights,
        )
        self._adapted = lora(backbone, stamp.rank, stamp.alpha, stamp.dropout, list(stamp.targets) or None)
        return StampNetwork(backbone, self._num_sets, stamp.hidden_dims)

    def prepare(self, batch: Any, step: int) -> Any:
        """Normalises images, and moves them and their scores to the device."""
        device = self.world.device
        targets = targets_of(batch, device)
        measured = targets["pathways_measured"]
        pathways = torch.where(measured, targets["pathways"], 0)
        return StampBatch(normalise(batch["image"], self.mean, self.std, device), pathways, measured)

    def losses(self, batch: StampBatch, step: int) -> Mapping[str, Tensor]:
        """Computes contrast and regression, each times its weight."""
        stamp = self.config.stamp
        output: StampOutput = self.network(batch.image, batch.pathways)
        image, pathway = gather_rows(output.image), gather_rows(output.pathway)
        known = gather_rows(batch.measured.any(dim=1, keepdim=True).float())[:, 0] > 0
        number = int(known.sum())
        # of no pairs: 0, and gradients of 0, so that processes and optimiser stay in step
        contrast = (image.sum() + pathway.sum()).float() * 0
        if number:
            contrast = info_nce(image[known], pathway[known], stamp.temperature)
        nothing, one = (
            batch.pathways.new_zeros(batch.pathways.shape[1]),
            batch.pathways.new_ones(batch.pathways.shape[1]),
        )
        squares, count = masked_squares(output.scores, batch.pathways, batch.measured, nothing, one)
        regression = squares * num_ranks() / sum_over_ranks(count).clamp(min=1)
        parts = {
            "contrast": stamp.contrast_weight * contrast,
            "regression": stamp.regression_weight * regression,
        }
        guessing = stamp.contrast_weight * math.log(max(number, 1))
        return {
            **parts,
            "ln_batch": contrast.new_tensor(guessing),
            "total": sum(parts.values(), contrast.new_zeros(())),
        }

    def state_dict(self) -> dict[str, Any]:
        """Names the network."""
        return {"network": get_model_state_dict(self.network)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the network."""
        set_model_state_dict(self.network, state["network"])

    def facts(self) -> dict[str, Tensor]:
        """States rows and columns of patches of the position embedding, which their number does not tell."""
        return {PATCH_GRID: torch.tensor(self._grid, device="cpu")}

    def write_weights(self, folder: Path) -> Path:
        """Writes the adapters with their base, and the encoder with the adapters merged in float32."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.network, options=options)
        merged: dict[str, Tensor] = {}
        network = self._build()
        if self.world.is_first:
            network.load_state_dict(weights)
            arguments = {"img_size": self.config.crops.global_size_px, **self.config.model.arguments}
            save_adapters(self._adapted, folder / "adapters", model_args=arguments)
            merged = merge(self._adapted).state_dict()
        return write_encoder(folder / "encoder.safetensors", merged, network.backbone, self.world)
