"""Weights in a file → a model that has all of them, or an error that names the file."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .checkpoint import CheckpointError, checkpoint_filter_fn
from .hybrid_vision_transformer import HybridVisionTransformer

_REMEDY = "check that the download is complete, or fetch it again"


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Loads a checkpoint file into a model, all of it or nothing.

    Args:
        model: Any timm model; for this package's models every format of
            :func:`~timm_mvhybrid.models.checkpoint_filter_fn` is converted.
        path: A safetensors file, or a PyTorch file that holds tensors only (no pickled objects are run).

    Returns:
        The file's sha256, as hexadecimal digits.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, not finite, or does not fit; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    state_dict = _read(path)
    try:
        if isinstance(model, HybridVisionTransformer):
            state_dict = checkpoint_filter_fn(state_dict, model)
        not_finite = [
            key
            for key, value in state_dict.items()
            if isinstance(value, torch.Tensor) and not torch.isfinite(value).all()
        ]
        if not_finite:
            raise CheckpointError(
                f"{not_finite[0]} and {len(not_finite) - 1} more hold NaN or Inf; {_REMEDY}"
            )
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return file_sha256(path)


def file_sha256(path: str | Path) -> str:
    """Computes the sha256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """Reads a state dict or a checkpoint that holds one."""
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty; {_REMEDY}")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}); {_REMEDY}") from error
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged ({reason}). Nothing of it was run; re-save its state dict "
            "with safetensors.torch.save_file where you trust it"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable PyTorch file ({error}); {_REMEDY}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: holds a {type(checkpoint).__name__}, not a state dict")
    return checkpoint
