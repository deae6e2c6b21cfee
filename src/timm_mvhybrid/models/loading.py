"""Weights in a file → a model that has all of them and computes what was exported, or an error that names the file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .checkpoint import CheckpointError, checkpoint_filter_fn, describe_misfit
from .fingerprint import Fingerprint
from .hybrid_vision_transformer import HybridVisionTransformer
from .weights_file import FINGERPRINT, WeightsFile, check_finite, read_weights

_logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# this package's part of config.json, which timm passes over
CONFIG_SECTION = "timm_mvhybrid"


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Loads a checkpoint file into a model, all of it or nothing.

    An exported file is verified: its bytes against the sha256 in the ``config.json`` beside it, or its tensors against
    the digest in its metadata, and the model's features against the fingerprint.

    Args:
        model: Any timm model; for this package's models every format of
            :func:`~timm_mvhybrid.models.checkpoint_filter_fn` is converted.
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
    fill(model, weights)
    return weights.sha256


def stated_sha256(config: Path, weights_name: str) -> str | None:
    """Looks up which sha256 an export's configuration states for a weights file.

    Args:
        config: A ``config.json``; it may be absent, or another program's.
        weights_name: The file's name.

    Returns:
        The sha256 in hex, or None where none is stated.
    """
    try:
        section = json.loads(config.read_text(encoding="utf-8"))[CONFIG_SECTION]
        return str(section["weights"]["sha256"]) if section["weights"]["file"] == weights_name else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def fill(model: nn.Module, weights: WeightsFile, *, new_head: bool = False) -> None:
    """Loads what a file holds into a model and compares the model with the file's fingerprint.

    The fingerprint is compared where :meth:`Fingerprint.applies_to` admits the model.

    Args:
        model: Any timm model.
        weights: The file's content.
        new_head: Whether a classifier of the file is left out and the model keeps its own.

    Raises:
        CheckpointError: The weights do not fit, or the model computes other features; the message names the file, and
            the model is as it was.
    """
    try:
        state = _fit(model, weights.checkpoint, new_head)
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
        model.load_state_dict(before)
        raise CheckpointError(
            f"{weights.path}: with these weights the model computes other features than those that were exported "
            f"(relative error {difference:.2g}, allowed {allowed:.2g}); create it with the options it was "
            f"exported with, without num_heads, act_layer or the like of your own, update timm_mvhybrid, or "
            f"{weights.remedy}"
        )


def _fit(model: nn.Module, checkpoint: Mapping[str, Any], new_head: bool) -> dict[str, Tensor]:
    """Converts a checkpoint, and proves that it covers the model before a tensor of the model is touched."""
    if isinstance(model, HybridVisionTransformer):
        state = checkpoint_filter_fn(checkpoint, model)
        _fit_input_channels(state, model)
    else:
        state = {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    kept: set[str] = set()
    if new_head:
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
        kept = {key for key in model.state_dict() if key.startswith("head.")}
    if misfit := describe_misfit(state, model, optional=kept):
        raise CheckpointError(
            f"the checkpoint does not fit the model: {misfit}. Create the model that the checkpoint was trained as, with "
            "the same options (num_classes=0 for features only)"
        )
    return state


def _fit_input_channels(state: dict[str, Tensor], model: HybridVisionTransformer) -> None:
    """Adapts the patch projection to the model's input channels, as timm 1.0.31 does for any number of them.

    Channels are repeated or cut off and scaled, so that the same value in every channel gives the same features; a
    single channel takes the sum.
    """
    key = "patch_embed.proj.weight"
    weight, wanted = state[key], model.patch_embed.proj.in_channels
    found = weight.shape[1]
    if found == wanted:
        return
    _logger.info("Adapted %s from %d to %d input channels.", key, found, wanted)
    if wanted == 1:
        adapted = weight.float().sum(dim=1, keepdim=True)
    else:
        repeated = weight.float().repeat(1, -(-wanted // found), 1, 1)[:, :wanted]
        adapted = repeated * (found / wanted)
    state[key] = adapted.to(weight.dtype)


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
    """Says which model an exported file belongs to, where the file says so."""
    name = weights.metadata.get("model")
    return f". The file was exported from {name}" if name else ""
