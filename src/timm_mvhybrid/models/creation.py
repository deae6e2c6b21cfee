"""Name → model, with this package's checks of what timm reads before it calls a model's entry point.

``timm.create_model`` reads ``config.json`` and ``checkpoint_path=`` by itself, and nothing in timm is replaced to
change that. A model of this package that is created this way still converts weights and proves that they are whole and
finite (its ``load_state_dict``), and ``pretrained=True`` verifies everything (its entry point). timm before 1.0.26
would run what a pickle in ``checkpoint_path=`` holds, so 1.0.26 is the oldest version that is supported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from timm.models import parse_model_name
from torch import nn

from ..weights.errors import CheckpointError
from ..weights.hub_download import download
from ..weights.weights_file import COPY_AGAIN
from .hybrid_vision_transformer import HybridVisionTransformer
from .loading import CONFIG_FILE, load_weights


def create_model(model_name: str, **kwargs: Any) -> nn.Module:
    """Creates a model as ``timm.create_model`` does, with the models of this package among timm's.

    It verifies more: ``checkpoint_path`` is loaded into a model of this package by
    :func:`~timm_mvhybrid.models.load_weights`, with sha256, digest and fingerprint; and ``config.json`` of an address
    is checked first. A repository is read at one commit; without network the cached one is taken at once.

    Some pipelines import a function by its dotted path and check its signature before they call it. For them the path
    ``timm_mvhybrid.create_model`` is both the function and the import that registers the models.

    Args:
        model_name: A model of this package or of timm, with a tag (``name.tag``) or without, or ``hf-hub:`` and
            ``local-dir:`` addresses.
        **kwargs: What ``timm.create_model`` takes: ``pretrained``, ``img_size``, ``dynamic_img_size``,
            ``checkpoint_path``, ...

    Returns:
        The model; one of this package returns features (batch, embed_dim) unless told otherwise.

    Raises:
        RuntimeError: There is no model of this name.
        CheckpointError: Weights or configuration are missing, damaged, or do not fit.
        HubError: The Hub did not give them.
    """
    checkpoint_path = kwargs.pop("checkpoint_path", None)
    model: nn.Module = timm.create_model(checked_name(model_name, kwargs.get("cache_dir")), **kwargs)
    if checkpoint_path:
        load_checkpoint(model, checkpoint_path)
    return model


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Loads a file into a model of this package by ``load_weights``, and into any other as timm does.

    Raises:
        CheckpointError: The file does not verify or fit; the message names it, and the model is as it was.
    """
    if isinstance(model, HybridVisionTransformer):
        model.weights_sha256 = load_weights(model, path)
    else:
        timm.models.load_checkpoint(model, str(path))


def checked_name(model_name: str, cache_dir: str | Path | None = None) -> str:
    """Checks the ``config.json`` that a name leads to, because timm reads it unchecked.

    Args:
        model_name: Any name that ``timm.create_model`` takes.
        cache_dir: Cache of downloads; None for huggingface_hub's own.

    Returns:
        The name to give to timm; one that names a repository names its commit, which is in the cache.

    Raises:
        CheckpointError: The configuration is missing or damaged.
        HubError: The Hub did not give it.
    """
    source, identifier = parse_model_name(model_name)
    if source == "local-dir":
        folder = Path(identifier)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; give the one that 'timm-mvhybrid export' wrote")
        _check_config(folder / CONFIG_FILE, COPY_AGAIN)
    elif source == "hf-hub":
        repo_id, _, revision = identifier.partition("@")
        path = download(repo_id, CONFIG_FILE, revision=revision or None, cache_dir=cache_dir)
        force = f"hf_hub_download('{repo_id}', '{CONFIG_FILE}', force_download=True)"
        _check_config(path, f"replace the cached copy: huggingface_hub.{force}")
        return f"hf-hub:{repo_id}@{path.parent.name}"
    return model_name


def _check_config(path: Path, remedy: str) -> None:
    """Raises CheckpointError unless a file is a configuration that timm can read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file, so nothing says which model the weights beside it belong to; {remedy}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable configuration, empty or damaged ({error}); {remedy}"
        ) from error
    valid = isinstance(config, dict) and isinstance(config.get("architecture"), str)
    sections = [config.get(key, {}) for key in ("pretrained_cfg", "model_args")] if valid else []
    if not valid or not all(isinstance(section, dict) for section in sections):
        raise CheckpointError(
            f"{path}: names no architecture, or is not a timm configuration at all: damaged, or another library's; {remedy}"
        )
