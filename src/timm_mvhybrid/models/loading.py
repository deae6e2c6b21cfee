"""Weights in a file → a model that has all of them and computes what was exported, or an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..weights.checkpoint import check_cover, check_types, fit_backbone
from ..weights.errors import CheckpointError
from ..weights.fingerprint import Fingerprint
from ..weights.key_conversion import take_backbone
from ..weights.weights_file import FINGERPRINT, WeightsFile, check_finite, read_weights
from .hybrid_vision_transformer import HybridVisionTransformer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# this package's section of config.json, which timm ignores
CONFIG_SECTION = "timm_mvhybrid"


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Loads a checkpoint file into a model, all of it or nothing.

    An exported file is verified: its bytes against the sha256 in the ``config.json`` beside it, or its tensors against
    the digest in its metadata, and the model's features against the fingerprint.

    Args:
        model: Any timm model; for this package's models every format of
            ``checkpoint_filter_fn`` is converted. Wrappers' prefixes are taken off for all.
        path: A safetensors file, or a PyTorch file that holds tensors only (no pickled objects are run).

    Returns:
        The file's sha256, as hexadecimal digits.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, not finite, or does not fit; the message names it. The
            model is as it was.
    """
    path = Path(path)
    config = path.parent / CONFIG_FILE
    weights = read_weights(path, sha256=stated_sha256(config, path.name), stated_in=str(config))
    fill(model, weights, input_size=stated_input_size(config, path.name))
    return weights.sha256


def stated_sha256(config: Path, weights_name: str) -> str | None:
    """Looks up which sha256 an export's configuration states for a weights file.

    Returns:
        The sha256 in hex, or None where none is stated.
    """
    try:
        return str(_read_config(config, weights_name)[CONFIG_SECTION]["weights"]["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def stated_input_size(config: Path, weights_name: str) -> tuple[int, ...] | None:
    """Looks up which input size an export's configuration states for a weights file.

    Returns:
        Channels, height and width in px, or None where none are stated.
    """
    try:
        channels, height, width = _read_config(config, weights_name)["pretrained_cfg"]["input_size"]
        return int(channels), int(height), int(width)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _read_config(config: Path, weights_name: str) -> dict[str, Any]:
    """Reads an export's configuration if it belongs to a weights file; raises errors of several kinds otherwise."""
    values: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    if values[CONFIG_SECTION]["weights"]["file"] != weights_name:
        raise KeyError(weights_name)
    return values


def fill(
    model: nn.Module,
    weights: WeightsFile,
    *,
    new_head: bool = False,
    input_size: Sequence[int] | None = None,
) -> None:
    """Loads what a file holds into a model and compares the model with the file's fingerprint.

    The fingerprint is compared where :meth:`Fingerprint.applies_to` allows it.

    Args:
        model: Any timm model.
        weights: The file's content.
        new_head: Whether a classifier of the file is left out and the model keeps its own.
        input_size: Channels, height and width in px that the file's configuration states.

    Raises:
        CheckpointError: The weights do not fit, or the model computes other features; the message names the file, and
            the model is as it was.
    """
    try:
        state = _fit(model, weights, new_head, input_size)
    except RuntimeError as error:
        raise CheckpointError(f"{weights.path}: {error}{_origin(weights)}") from error
    check_finite(state, weights.path, weights.remedy)
    fingerprint = _fingerprint(weights)
    check = isinstance(model, HybridVisionTransformer) and fingerprint is not None
    before = {key: value.clone() for key, value in model.state_dict().items()} if check else {}
    model.load_state_dict(state, strict=False)
    if not check or fingerprint is None or not fingerprint.applies_to(model):
        return
    difference, allowed = fingerprint.error(model), fingerprint.tolerance(model)
    if not difference <= allowed:
        model.load_state_dict(before, strict=False)
        raise CheckpointError(
            f"{weights.path}: with these weights the model computes other features than those that were exported "
            f"(relative error {difference:.2g}, allowed {allowed:.2g}); create it with the options it was "
            f"exported with, without num_heads, act_layer or the like of your own, update timm_mvhybrid, or "
            f"{weights.remedy}"
        )


def _fit(
    model: nn.Module, weights: WeightsFile, new_head: bool, input_size: Sequence[int] | None
) -> dict[str, Tensor]:
    """Converts a checkpoint, and proves that it covers the model before a tensor of the model is touched."""
    if isinstance(model, HybridVisionTransformer):
        state = fit_backbone(weights.checkpoint, model, grid=weights.grid, input_size=input_size)
    else:
        _, state = take_backbone(weights.checkpoint, model_names=model.state_dict())
    kept: set[str] = set()
    if new_head:
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
        kept = {key for key in model.state_dict() if key.startswith("head.")}
    check_cover(state, model, optional=kept)
    check_types(state, model)
    return state


def _fingerprint(weights: WeightsFile) -> Fingerprint | None:
    text = weights.metadata.get(FINGERPRINT)
    if text is None:
        return None
    try:
        return Fingerprint.from_json(text)
    except ValueError as error:
        raise CheckpointError(
            f"{weights.path}: its metadata hold {error}: the file is damaged; {weights.remedy}"
        ) from error


def _origin(weights: WeightsFile) -> str:
    """Says which model an exported file belongs to, if the file does."""
    name = weights.metadata.get("model")
    return f". The file was exported from {name}" if name else ""
