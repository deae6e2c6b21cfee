"""Model name + weights → a backbone that knows which weights it carries."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from ..models import NotPublishedError, create_model, load_weights
from ..runtime.digest import file_sha256
from ..runtime.errors import EvaluationError

# in timm's own order of preference
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model without classifier, and what its weights are.

    Args:
        model: Any timm model.
        name: Its timm name.
        weights: `random`, `pretrained` or the checkpoint's file name.
        weights_sha256: SHA-256 of the weights' file in hex; `random` or `unknown` where there is no such file.
    """

    model: nn.Module
    name: str
    weights: str = "random"
    weights_sha256: str = "random"


def load_backbone(
    name: str, *, pretrained: bool = False, checkpoint: str | Path | None = None, seed: int = 0
) -> Backbone:
    """Builds a timm model and fills it with weights.

    Args:
        name: Any model timm knows, this package's included.
        pretrained: Take the weights that timm downloads.
        checkpoint: Take the weights of this file.
        seed: Seed of random weights, used if neither is given; the global generator is left as it was.

    Returns:
        The backbone in evaluation mode, on the CPU.

    Raises:
        EvaluationError: If both kinds of weights are asked for, timm does not know the name or has no weights for it.
    """
    if pretrained and checkpoint is not None:
        raise EvaluationError("--pretrained and --checkpoint exclude each other")
    if not timm.is_model(name.split(".")[0]) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.6)
        guess = f"did you mean {', '.join(close)}? " if close else ""
        raise EvaluationError(f"unknown model '{name}'; {guess}'timm-mvhybrid models' lists ours")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create_model(name, pretrained=pretrained, num_classes=0)
    except RuntimeError as error:
        if pretrained and isinstance(error, NotPublishedError):
            raise EvaluationError(f"{error}; or give your own with --checkpoint FILE") from error
        if pretrained and "No pretrained weights exist" in str(error):
            raise EvaluationError(
                f"no pretrained weights are published for {name}; give your own with --checkpoint FILE"
            ) from error
        # timm names a tag that does not exist in the same class as every other failure
        if "Invalid pretrained tag" in str(error):
            raise EvaluationError(" ".join(str(error).split())) from error
        raise
    model.eval()
    if checkpoint is not None:
        digest = load_weights(model, checkpoint)
        return Backbone(model=model, name=name, weights=Path(checkpoint).name, weights_sha256=digest)
    if pretrained:
        digest = getattr(model, "weights_sha256", "")
        if not digest:
            file = _pretrained_file(getattr(model, "pretrained_cfg", {}))
            digest = "unknown" if file is None else file_sha256(file)
        return Backbone(model=model, name=name, weights="pretrained", weights_sha256=digest)
    return Backbone(model=model, name=name)


def _pretrained_file(config: dict[str, Any]) -> Path | None:
    """Finds the file that timm took weights from, where it took them from one."""
    if config.get("file"):
        return Path(config["file"])
    if config.get("hf_hub_id"):
        files = (config["hf_hub_filename"],) if config.get("hf_hub_filename") else _HUB_FILES
        repo_id, _, revision = config["hf_hub_id"].partition("@")
        for file in files:
            cached = try_to_load_from_cache(repo_id, file, revision=revision or None)
            if isinstance(cached, str):
                return Path(cached)
    if config.get("url"):
        downloaded = Path(torch.hub.get_dir(), "checkpoints", Path(config["url"]).name)
        return downloaded if downloaded.is_file() else None
    return None
