"""timm's factory, which opens some files before it calls a model's entry point → our checks and errors there too.

``timm.create_model`` reads ``config.json`` and ``checkpoint_path`` by itself: with unnamed errors, and in
timm 1.0.24 with the full power of pickle. The three functions it does that with are replaced in its namespace alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from timm.models import _factory
from torch import nn

from .errors import CheckpointError
from .hub_download import HubError, download
from .hybrid_vision_transformer import HybridVisionTransformer
from .loading import CONFIG_FILE, load_weights
from .weights_file import COPY_AGAIN

_timms_load_checkpoint = _factory.load_checkpoint
_timms_load_config_from_path = _factory.load_model_config_from_path


def load_checkpoint(model: nn.Module, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
    """Loads a checkpoint into a model of this package by `load_weights`, and into any other as timm does.

    Args:
        model: The model.
        checkpoint_path: The file.
        *args: What timm's function takes.
        **kwargs: What timm's function takes.

    Returns:
        What timm's function returns; None for a model of this package.
    """
    if not isinstance(model, HybridVisionTransformer):
        return _timms_load_checkpoint(model, checkpoint_path, *args, **kwargs)
    model.weights_sha256 = load_weights(model, checkpoint_path)
    return None


def load_config_from_path(model_path: str | Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Reads ``config.json`` of a folder as timm does, after a check of what timm takes for granted.

    Args:
        model_path: The folder.

    Returns:
        Pretrained configuration, architecture and model arguments.

    Raises:
        CheckpointError: The folder or its configuration is missing or damaged.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        raise _compatible(
            CheckpointError(f"{folder}: no such folder; give the one that 'timm-mvhybrid export' wrote"),
            FileNotFoundError,
        )
    _check_config(folder / CONFIG_FILE, COPY_AGAIN)
    return _timms_load_config_from_path(folder)


def load_config_from_hub(
    model_id: str, cache_dir: str | Path | None = None
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Downloads and reads ``config.json`` of a repository as timm does, but fails at once and in one sentence.

    Args:
        model_id: "organisation/name" or "organisation/name@revision".
        cache_dir: Cache of downloads.

    Returns:
        Pretrained configuration, architecture and model arguments.

    Raises:
        HubError: The file cannot be had.
        CheckpointError: It is damaged.
    """
    repo_id, _, revision = model_id.partition("@")
    try:
        path = download(repo_id, CONFIG_FILE, revision=revision or None, cache_dir=cache_dir)
    except HubError as error:
        kind = type(error.__cause__) if isinstance(error.__cause__, Exception) else Exception
        raise _compatible(error, kind) from error.__cause__
    force = f"hf_hub_download('{repo_id}', '{CONFIG_FILE}', force_download=True)"
    _check_config(path, f"replace the cached copy: huggingface_hub.{force}")
    config, architecture, model_args = _timms_load_config_from_path(path.parent)
    config.pop("file", None)
    return {**config, "hf_hub_id": model_id, "source": "hf-hub"}, architecture, model_args


def _check_config(path: Path, remedy: str) -> None:
    """Raises CheckpointError unless a file is a configuration that timm can read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _compatible(
            CheckpointError(f"{path}: no such file, so the weights beside it cannot be told apart; {remedy}"),
            FileNotFoundError,
        ) from error
    except (OSError, ValueError) as error:
        raise _compatible(
            CheckpointError(f"{path}: not a readable configuration, empty or damaged ({error}); {remedy}"),
            type(error),
        ) from error
    valid = isinstance(config, dict) and isinstance(config.get("architecture"), str)
    sections = [config.get(key, {}) for key in ("pretrained_cfg", "model_args")] if valid else []
    if not valid or not all(isinstance(section, dict) for section in sections):
        raise CheckpointError(
            f"{path}: names no architecture, or is no timm configuration at all: damaged, or another library's; {remedy}"
        )


def _compatible(error: CheckpointError, kind: type[Exception]) -> CheckpointError:
    """Makes the error one of `kind` too, for callers that catch what timm would have let through.

    These functions serve every model of timm's, not this package's alone.
    """
    if isinstance(error, kind):
        return error
    ours = type(error)
    both: Any = type(
        ours.__name__, (ours, kind), {"__module__": ours.__module__, "__str__": RuntimeError.__str__}
    )
    # made past the other class's __init__, which may want a response
    result: CheckpointError = kind.__new__(both, *error.args)
    result.args = error.args
    return result


def install() -> None:
    """Puts the three functions into the namespace of timm's factory; again has no effect."""
    _factory.load_checkpoint = load_checkpoint
    _factory.load_model_config_from_path = load_config_from_path
    _factory.load_model_config_from_hf = load_config_from_hub
