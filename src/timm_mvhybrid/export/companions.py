"""What a fine-tuning run leaves beside its encoder: ST token and heads, or adapters → files beside the exported weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..models.loading import CONFIG_FILE, CONFIG_SECTION
from ..runtime.digest import file_sha256
from ..runtime.tensor_digest import tensors_sha256
from ..weights.weights_file import TENSORS_SHA256, read_weights
from .errors import ExportError
from .training_checkpoint import ENCODER_FILE

ST_FILE, ST_FACTS = "st_model.safetensors", "timm_mvhybrid_st"
ADAPTERS = "adapters"
"""Folder of a run's adapters."""
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "base.json")
COMPANIONS = (ST_FILE, *ADAPTER_FILES)
_BACKBONE = "backbone."


def read_companions(source: Path, stored: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Reads what belongs to the encoder of a run that fine-tuned it.

    The ST model loses the backbone that it repeats, which ``model.safetensors`` has, and states that one's digest.

    Args:
        source: What is exported.
        stored: The weights as they will be stored.

    Returns:
        Name of the file → content; empty where the source is no encoder of such a run.

    Raises:
        ExportError: The files are damaged, or belong to other weights than those that are stored.
    """
    if source.name != ENCODER_FILE:
        return {}
    found: dict[str, bytes] = {}
    if (source.parent / ST_FILE).is_file():
        found[ST_FILE] = _st_model(source.parent / ST_FILE, stored)
    adapters = source.parent / ADAPTERS
    if adapters.is_dir():
        for name in ADAPTER_FILES:
            try:
                found[name] = (adapters / name).read_bytes()
            except OSError as error:
                raise ExportError(
                    f"{adapters / name}: cannot be read ({error.strerror}); finish the run again"
                ) from error
    return found


def stated_companions(folder: Path) -> dict[str, str]:
    """Lists the further files that an exported folder states.

    Returns:
        Name → sha256 in hex.

    Raises:
        ExportError: The configuration names a file that no export writes.
    """
    try:
        stated: Any = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        found = {str(name): str(sha256) for name, sha256 in stated[CONFIG_SECTION]["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    unknown = [name for name in found if name not in COMPANIONS]
    if unknown:
        raise ExportError(f"{folder / CONFIG_FILE}: states the file {unknown[0]!r}, which no export writes")
    return found


def verify_companions(folder: Path, remedy: str) -> None:
    """Compares the further files of an exported folder with what it states of them.

    Args:
        folder: The folder.
        remedy: What to do if it fails, half a sentence.

    Raises:
        ExportError: One is missing or damaged.
    """
    for name, sha256 in stated_companions(folder).items():
        file = folder / name
        if not file.is_file():
            raise ExportError(f"{file}: missing, and {CONFIG_FILE} states it; {remedy}")
        if file_sha256(file) != sha256:
            raise ExportError(f"{file}: its sha256 is not the one that {CONFIG_FILE} states; {remedy}")


def _st_model(file: Path, stored: Mapping[str, Tensor]) -> bytes:
    weights = read_weights(file)
    own: dict[str, Tensor] = {}
    for name, tensor in weights.checkpoint.items():
        if not name.startswith(_BACKBONE):
            own[name] = tensor
            continue
        now = stored.get(name.removeprefix(_BACKBONE))
        if now is None or now.dtype != tensor.dtype or not torch.equal(now, tensor):
            raise ExportError(
                f"{file}: its ST token was trained on other weights than those that would be stored; export with "
                "`dtype='float32'` and the run's own `model_args`, or give the encoder by `checkpoint` from another folder "
                "to export it without"
            )
    try:
        facts = json.loads(weights.metadata[ST_FACTS])
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"{file}: its metadata do not describe an ST model; finish the run again"
        ) from error
    facts["backbone_sha256"] = tensors_sha256(dict(stored))
    metadata = {"format": "pt", ST_FACTS: json.dumps(facts), TENSORS_SHA256: tensors_sha256(own)}
    return save({name: tensor.contiguous() for name, tensor in own.items()}, metadata=metadata)
