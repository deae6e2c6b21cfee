"""Model name + weights → a backbone that knows its weights, and the transform of its images."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from ..models import NotPublishedError, create_model, load_weights
from ..runtime.digest import file_sha256
from ..runtime.errors import EvaluationError, ParameterError, check_seed
from .baselines import PREFIX, baseline_model

Transform = Callable[[Any], Tensor]
"""PIL image → (3, height, width), normalised."""

TokenKind = Literal["class", "st", "class+st"]
"""Tokens whose features an image gets: of a model that was fine-tuned with an ST token."""

# in timm's own order of preference
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model without classifier, and its weights' identity.

    Attributes:
        model: Any timm model.
        name: Its timm name.
        weights: ``random``, ``pretrained``, the checkpoint's file name, or ``none`` of a baseline.
        weights_sha256: SHA-256 of the weights' file in hex; ``random``, ``unknown`` or ``none`` where there is no such file.
    """

    model: nn.Module
    name: str
    weights: str = "random"
    weights_sha256: str = "random"


def load_backbone(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    **model_args: Any,
) -> Backbone:
    """Builds a timm model and fills it with weights.

    Args:
        name: Any model timm knows, this package's included, or a baseline without weights: ``baseline:colour``,
            ``baseline:mean``, ``baseline:position``.
        pretrained: Take the weights that timm downloads.
        checkpoint: Take the weights of this file.
        seed: Seed of random weights, used if neither is given; the global generator is left as it was.
        **model_args: Further arguments of ``timm_mvhybrid.create_model``.

    Returns:
        The backbone in evaluation mode, on the CPU.

    Raises:
        ParameterError: Both kinds of weights are asked for, or the seed is negative.
        EvaluationError: Timm does not know the name or has no weights for it.
    """
    check_seed(seed)
    if pretrained and checkpoint is not None:
        raise ParameterError("`pretrained` and `checkpoint` exclude each other")
    if name.startswith(PREFIX):
        if checkpoint is not None or model_args:
            raise ParameterError(f"{name} has no weights and no arguments; leave `checkpoint` and others out")
        return Backbone(model=baseline_model(name).eval(), name=name, weights="none", weights_sha256="none")
    if not timm.is_model(name.split(".")[0]) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.6)
        guess = f"did you mean {', '.join(close)}? " if close else ""
        raise EvaluationError(f"unknown model '{name}'; {guess}'timm-mvhybrid models' lists ours")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create_model(name, pretrained=pretrained, num_classes=0, **model_args)
    except RuntimeError as error:
        if pretrained and isinstance(error, NotPublishedError):
            raise EvaluationError(f"{error}; or give your own with `checkpoint=FILE`") from error
        if pretrained and "No pretrained weights exist" in str(error):
            raise EvaluationError(
                f"no pretrained weights are published for {name}; give your own with `checkpoint=FILE`"
            ) from error
        # timm raises the same class for a tag that does not exist as for every other failure
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


TokenLoader = Callable[[str, TokenKind], Backbone]
_token_loaders: list[TokenLoader] = []


def register_token_loader(loader: TokenLoader) -> None:
    """Makes known who loads models with an ST token; this room stands below it."""
    _token_loaders[:] = [loader]


def load_tokens(source: str, kind: TokenKind) -> Backbone:
    """Loads a model with an ST token as a backbone.

    Args:
        source: An exported folder, ``local-dir:FOLDER``, ``hf-hub:ORG/NAME``, or the folder of a run.
        kind: Whose features it gives.

    Raises:
        EvaluationError: Nothing that loads such models was imported.
    """
    if not _token_loaders:
        raise EvaluationError(
            "models with an ST token are loaded by timm_mvhybrid.finetune; import timm_mvhybrid.finetune.token_features first"
        )
    return _token_loaders[0](source, kind)


def load_encoder(
    model_name: str,
    *,
    pretrained: bool | None = None,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    **model_args: Any,
) -> tuple[nn.Module, Transform]:
    """Builds a backbone that gives one vector an image, and its transform, for pipelines that are handed the two.

    Args:
        model_name: Any name that ``load_backbone`` takes.
        pretrained: Take published weights; None means yes, unless a checkpoint is given.
        checkpoint: Take the weights of this file; under timm's name, ``checkpoint_path``, it is taken too.
        image_size: Side in px at which images enter; other images are resized. None takes the model's own, 256 px for
            the backbones of this package.
        **model_args: Further arguments of ``timm_mvhybrid.create_model``.

    Returns:
        The model, which maps (batch, 3, height, width) to (batch, features), and its transform.

    Raises:
        EvaluationError: As in ``load_backbone``.
        ParameterError: The size does not suit the model's patches, or the model leaves its tokens unpooled.
    """
    if model_args.get("global_pool") == "":
        raise ParameterError(
            "`global_pool` is '', so the model would return tokens; leave it out for the class token, or give 'avg'"
        )
    file = model_args.pop("checkpoint_path", None) or checkpoint
    wanted = file is None if pretrained is None else pretrained
    model = load_backbone(model_name, pretrained=wanted, checkpoint=file, **model_args).model
    config = resolve_data_config({}, model=model)
    if image_size is not None:
        sides = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        if image_size < 1 or any(image_size % side for side in sides):
            raise ParameterError(
                f"`image_size` is {image_size} px; {model_name} takes multiples of {sides[0]} px, such as "
                f"{max(1, round(image_size / sides[0])) * sides[0]}"
            )
        config["input_size"] = (config["input_size"][0], image_size, image_size)
    return model, create_transform(**{**config, "crop_pct": 1.0})


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
