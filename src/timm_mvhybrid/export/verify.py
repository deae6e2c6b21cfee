"""An exported folder → the certainty that it loads as what was exported, or an error that names the file at fault."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..models import ALL_MODEL_NAMES, create_model
from ..models.loading import CONFIG_FILE, WEIGHTS_FILE, stated_sha256
from ..weights.fingerprint import Fingerprint
from ..weights.weights_file import COPY_AGAIN, FINGERPRINT, TENSORS_SHA256
from .companions import verify_companions
from .errors import ExportError

# files of these kinds can run code when they are opened, so they are never published
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".distcp")
_REQUIRED = (FINGERPRINT, TENSORS_SHA256, "model", "tag", "timm_mvhybrid_version")


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An exported folder that was loaded and compared.

    Args:
        folder: The folder.
        model: Architecture.
        tag: Name of this set of weights.
        sha256: sha256 of the weights file, in hex.
        metadata: Metadata of the weights file.
    """

    folder: Path
    model: str
    tag: str
    sha256: str
    metadata: Mapping[str, str]


def verify(folder: str | Path, *, remedy: str = COPY_AGAIN) -> Verified:
    """Loads an exported folder as a user would, with the sha256, the digest and the fingerprint demanded.

    Args:
        folder: What `export` wrote, or the Hub gave back.
        remedy: What to do if it fails, half a sentence.

    Returns:
        What it holds.

    Raises:
        CheckpointError: A file is missing, damaged, not what was exported, or could run code.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ExportError(f"{folder}: no such folder; give the one that 'timm-mvhybrid export' wrote")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ExportError(
            f"{folder / pickles[0]}: files of this kind can run code when they are opened and are never published; remove it"
        )
    sha256 = stated_sha256(folder / CONFIG_FILE, WEIGHTS_FILE)
    # on the device and in the type of a plain program, whatever the caller's are
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model: Any = create_model(f"local-dir:{folder}", pretrained=True, dtype=torch.float32)
    name = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["architecture"]
    if name not in ALL_MODEL_NAMES:
        raise ExportError(f"{folder / CONFIG_FILE}: names {name}, which is not a model of this package")
    if sha256 is None:
        raise ExportError(f"{folder / CONFIG_FILE}: states no sha256 of {WEIGHTS_FILE}; {remedy}")
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        metadata: dict[str, str] = dict(file.metadata() or {})
    missing = [key for key in _REQUIRED if key not in metadata]
    if missing:
        raise ExportError(f"{folder / WEIGHTS_FILE}: its metadata lack {', '.join(missing)}; {remedy}")
    if metadata["model"] != name:
        raise ExportError(
            f"{folder / CONFIG_FILE}: names {name}, but {WEIGHTS_FILE} was exported from {metadata['model']}; {remedy}"
        )
    if not Fingerprint.from_json(metadata[FINGERPRINT]).applies_to(model):
        raise ExportError(
            f"{folder / CONFIG_FILE}: describes a model of another input than the one exported; {remedy}"
        )
    verify_companions(folder, remedy)
    return Verified(
        folder=folder, model=name, tag=metadata["tag"], sha256=model.weights_sha256, metadata=metadata
    )
