"""What MINT leaves: a backbone, an ST token, and heads that tell expression; written by runs, exported, loaded verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..export.companions import ST_FACTS, ST_FILE, stated_companions
from ..export.training_checkpoint import ENCODER_FILE
from ..models import create_model
from ..models.loading import CONFIG_FILE, WEIGHTS_FILE, load_weights
from ..runtime.tensor_digest import tensors_sha256
from ..weights.fingerprint import synthetic_image
from ..weights.weights_file import check_finite, read_weights
from .errors import FinetuneError
from .mint_student import pooled
from .published_folder import folder_of
from .st_model import STModel

_TOLERANCE = 1e-4
"""Relative error of the ST features of the fixed image on a CPU; see ``Fingerprint``."""


@dataclass(frozen=True, kw_only=True)
class PanelFacts:
    """A panel of genes that a head predicts.

    Attributes:
        genes: Their names.
        unit: What predictions are measured in.
        platform: Whether the head learned from spots or from transcripts.
        mean: Of each gene over training patches, (genes,).
        std: Likewise.
        grid: Cells along a side of a patch; None without a head for cells.
        token_mean: Of each gene over cells of training patches; None without them.
        token_std: Likewise.
    """

    genes: tuple[str, ...]
    unit: str
    platform: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grid: int | None = None
    token_mean: tuple[float, ...] | None = None
    token_std: tuple[float, ...] | None = None


class ExpressionModel(STModel):
    """A backbone with an ST token, and for each panel a head that predicts expression.

    Args:
        backbone: The backbone; see ``STModel``.
        panels: Panels by name.
        st_start: The first block with the token.
        st_writes: Whether attention sees the token.

    Attributes:
        panels: Panels by name.
    """

    def __init__(
        self,
        backbone: nn.Module,
        panels: Mapping[str, PanelFacts],
        *,
        st_start: int | None = None,
        st_writes: bool = False,
    ) -> None:
        super().__init__(backbone, st_start, st_writes)
        self.panels = dict(panels)
        self._with_cells = [name for name, panel in self.panels.items() if panel.grid is not None]
        self.spot_heads = nn.ModuleList(
            [nn.Linear(self.embed_dim, len(panel.genes)) for panel in self.panels.values()]
        )
        self.token_heads = nn.ModuleList(
            [nn.Linear(self.embed_dim, len(self.panels[name].genes)) for name in self._with_cells]
        )

    def predict(self, x: Tensor) -> dict[str, dict[str, Tensor]]:
        """Predicts the expression of patches, and of the cells of their token grids.

        Args:
            x: Images, (batch, 3, height, width), normalised.

        Returns:
            Panel → "spot", (batch, genes), and where it has cells "cells", (batch, grid², genes), row by row, in the
            panel's ``unit``.
        """
        features = self.features(x)
        height, width = x.shape[-2:]
        grid = self.backbone.patch_embed.dynamic_feat_size((height, width))
        found: dict[str, dict[str, Tensor]] = {}
        for (name, panel), head in zip(self.panels.items(), self.spot_heads, strict=True):
            found[name] = {"spot": _in_unit(head(features["st"]), panel.mean, panel.std)}
        for name, head in zip(self._with_cells, self.token_heads, strict=True):
            panel = self.panels[name]
            cells = head(pooled(features["patch"], grid, panel.grid or 1))
            found[name]["cells"] = _in_unit(cells, panel.token_mean or (), panel.token_std or ())
        return found


def facts_of(
    student: Any, panels: Mapping[str, Any], backbone: nn.Module, weights: Mapping[str, Tensor]
) -> dict[str, str]:
    """Says, for the metadata of ``st_model.safetensors``, what its tensors are, and what they compute.

    Args:
        student: MINT's student.
        panels: Its panels, in the order of its heads.
        backbone: A backbone of the student's architecture, whose weights are copied, not changed.
        weights: Whole weights of the student; none on processes but the first, which then say nothing.

    Returns:
        Metadata by name.
    """
    if not weights:
        return {}
    model = STModel(deepcopy(backbone).cpu(), student.st_start, student.write_gates is not None)
    model.load_state_dict(
        {name: weights[name].cpu() for name in model.state_dict() if name in weights}, strict=False
    )
    found = {
        "features": st_features(model),
        "features_size_px": list(model.backbone.patch_embed.img_size),
        "st_start": student.st_start,
        "st_writes": student.write_gates is not None,
        "panels": {
            name: {
                "genes": list(panel.genes),
                "unit": getattr(panel, "unit", ""),
                "platform": getattr(panel, "platform", ""),
                "grid": panel.grid,
                **{
                    kind: _numbers(getattr(panel, kind))
                    for kind in ("mean", "std", "token_mean", "token_std")
                },
            }
            for name, panel in panels.items()
        },
    }
    return {ST_FACTS: json.dumps(found)}


def load(source: str | Path, *, cache_dir: str | Path | None = None) -> ExpressionModel:
    """Loads what a run of MINT left: backbone, ST token and heads, all verified.

    Args:
        source: An exported folder or that of a finished run, also as ``local-dir:FOLDER``; or ``hf-hub:ORG/NAME``, with
            ``@TAG`` for a revision.
        cache_dir: Cache of downloads; None for huggingface_hub's own.

    Returns:
        The model, in evaluation mode, on the CPU in float32.

    Raises:
        FinetuneError: There is no ST model, or it is not what was exported; the message names the file.
        CheckpointError: The backbone is missing, damaged, or not what was exported.
        HubError: The Hub did not give a file.
    """
    folder = _folder(str(source), cache_dir)
    file = folder / ST_FILE
    if not file.is_file():
        raise FinetuneError(
            f"{file}: no such file, so there is no ST model; give what a finished run of MINT left, or what was exported of it"
        )
    facts, tensors = _read(file)
    backbone = _backbone(folder)
    panels = {name: _panel(file, panel) for name, panel in facts["panels"].items()}
    with torch.random.fork_rng(devices=[]):
        model = ExpressionModel(
            backbone, panels, st_start=int(facts["st_start"]), st_writes=bool(facts["st_writes"])
        )
    digest = facts.get("backbone_sha256")
    if digest is not None and digest != backbone_sha256(backbone):
        raise FinetuneError(
            f"{file}: belongs to another backbone than the one in {folder}; export the run again"
        )
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.")}
    wanted = {
        name: value.shape for name, value in model.state_dict().items() if not name.startswith("backbone.")
    }
    if {name: value.shape for name, value in state.items()} != wanted:
        raise FinetuneError(
            f"{file}: its tensors are not those that its metadata describe; export the run again"
        )
    check_finite(state, file)
    model.load_state_dict(state, strict=False)
    model.eval()
    # at another size, position embeddings are resampled, and features are others
    if facts.get("features_size_px") == list(model.backbone.patch_embed.img_size):
        _check_features(model, facts["features"], file)
    return model


def stated_file(source: str | Path, *, cache_dir: str | Path | None = None) -> Path:
    """Names the file of ST token and heads that ``load`` reads."""
    return _folder(str(source), cache_dir) / ST_FILE


def backbone_sha256(backbone: nn.Module) -> str:
    """Identifies the weights of a backbone, without the mask token, which exports leave out."""
    return tensors_sha256({k: v for k, v in backbone.state_dict().items() if k != "mask_token"})


@torch.no_grad()
def st_features(model: STModel) -> list[float]:
    """Computes the ST features of a fixed image, by which a loaded model proves what it computes."""
    was_training = model.training
    height, width = model.backbone.patch_embed.img_size
    found: list[float] = model.eval().features(synthetic_image(height, width))["st"][0].tolist()
    model.train(was_training)
    return found


def _check_features(model: STModel, stated: list[float], file: Path) -> None:
    expected, found = torch.tensor(stated), torch.tensor(st_features(model))
    error = (
        float((found - expected).norm() / expected.norm()) if found.shape == expected.shape else float("inf")
    )
    if not error <= _TOLERANCE:
        raise FinetuneError(
            f"{file}: with these weights the model computes other ST features than those that were exported (relative "
            f"error {error:.2g}, allowed {_TOLERANCE:.2g}); copy, download or export it again"
        )


def _folder(source: str, cache_dir: str | Path | None) -> Path:
    folder = folder_of(source, (CONFIG_FILE, WEIGHTS_FILE, ST_FILE), cache_dir=cache_dir)
    if not folder.is_dir():
        raise FinetuneError(
            f"{folder}: no such folder; give an exported folder, or that of a finished run of MINT"
        )
    return folder


def _backbone(folder: Path) -> nn.Module:
    config = _json(folder / CONFIG_FILE)
    if "architecture" in config:
        return create_model(f"local-dir:{folder}", pretrained=True)
    if not (folder / ENCODER_FILE).is_file():
        raise FinetuneError(f"{folder}: the run is not finished; start it again, and it goes on")
    try:
        name, arguments = config["model"]["name"], config["model"]["arguments"]
        options = {"img_size": config["crops"]["global_size_px"], "num_classes": 0, **arguments}
    except (KeyError, TypeError) as error:
        raise FinetuneError(f"{folder / CONFIG_FILE}: is not the configuration of a run of MINT") from error
    with torch.random.fork_rng(devices=[]):
        backbone = create_model(name, **options)
    load_weights(backbone, folder / ENCODER_FILE)
    return backbone


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    weights = read_weights(file, sha256=stated_companions(file.parent).get(ST_FILE), stated_in=CONFIG_FILE)
    try:
        facts = json.loads(weights.metadata[ST_FACTS])
        if not isinstance(facts["panels"], dict):
            raise TypeError("panels")
        int(facts["st_start"]), bool(facts["st_writes"])
    except (KeyError, TypeError, ValueError) as error:
        raise FinetuneError(
            f"{file}: its metadata do not describe an ST model ({error}); export it again"
        ) from error
    return facts, dict(weights.checkpoint)


def _panel(file: Path, values: Any) -> PanelFacts:
    try:
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return PanelFacts(**given)
    except TypeError as error:
        raise FinetuneError(
            f"{file}: its metadata do not describe a panel ({error}); export it again"
        ) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinetuneError(
            f"{file}: cannot be read ({error}); give an exported folder, or that of a run"
        ) from error
    return found if isinstance(found, dict) else {}


def _numbers(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _in_unit(standardised: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return standardised * standardised.new_tensor(std) + standardised.new_tensor(mean)
