"""Any checkpoint of a training, or weights → the state dict of one backbone, and the run it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..models.checkpoint import checkpoint_filter_fn
from ..models.pretrained import find_weights
from ..models.weights_file import check_finite, file_sha256, read_weights
from .errors import ExportError
from .sharded_checkpoint import INDEX_FILE, is_sharded, read_sharded, tensor_names

Branch = Literal["teacher", "student"]
_BRANCHES: tuple[Branch, ...] = ("teacher", "student")
# what training wrappers put before the branch
_WRAPPERS = ("module", "model", "state_dict", "app")
# an average of the weights under the names that timm's training gives it
_AVERAGES = ("state_dict_ema", "model_ema")


@dataclass(frozen=True, kw_only=True)
class TrainingCheckpoint:
    """The weights of one backbone, by the names of their source.

    Args:
        path: The file, or the folder of a sharded checkpoint.
        tensors: The weights, on the CPU.
        branch: Whose weights they are; None where the source has no branches.
        run: The run's folder, where its records lie; None if the checkpoint lies in none.
        step: The step of training, as the checkpoint's name states it.
        sha256: sha256 of the file, or of a sharded checkpoint's index.
    """

    path: Path
    tensors: dict[str, Tensor]
    branch: Branch | None
    run: Path | None
    step: int | None
    sha256: str


def read_training_checkpoint(path: str | Path, branch: Branch = "teacher") -> TrainingCheckpoint:
    """Reads a checkpoint.

    Args:
        path: A run's folder (its newest ``checkpoints/step_<n>`` is taken), a sharded checkpoint's folder, an exported
            folder, or a file (safetensors, or PyTorch tensors only).
        branch: Whose weights to take where there are a teacher's and a student's.

    Returns:
        The weights.

    Raises:
        ExportError: There is no checkpoint, or it has not the branch.
        CheckpointError: It is damaged, unsafe or not finite.
    """
    path = _find(Path(path))
    if path.is_dir():
        names = {name: _split(name) for name in tensor_names(path)}
        chosen = _choose(path, [found for found, _ in names.values()], branch)
        tensors = read_sharded(path, lambda name: names[name][0] == chosen and _is_weight(names[name][1]))
        tensors = {names[name][1]: tensor for name, tensor in tensors.items()}
        sha256 = file_sha256(path / INDEX_FILE)
    else:
        weights = read_weights(path)
        flat = _flatten(weights.checkpoint, "")
        branches = {name: _split(name) for name in flat}
        chosen = _choose(path, [found for found, _ in branches.values()], branch)
        tensors = {
            rest: flat[name]
            for name, (found, rest) in branches.items()
            if found == chosen and _is_weight(rest)
        }
        sha256 = weights.sha256
    check_finite(tensors, path)
    step = re.search(r"step_?(\d+)", path.name)
    return TrainingCheckpoint(
        path=path,
        tensors=tensors,
        branch=chosen,
        run=_run_folder(path),
        step=int(step[1]) if step else None,
        sha256=sha256,
    )


def convert(checkpoint: TrainingCheckpoint, model: Any) -> dict[str, Tensor]:
    """Converts a checkpoint into a model's names and shapes; it must cover the model exactly.

    Args:
        checkpoint: The checkpoint.
        model: The backbone.

    Returns:
        A state dict.

    Raises:
        ExportError: Weights are missing, of another shape, or the model has no place for them.
    """
    try:
        return checkpoint_filter_fn(checkpoint.tensors, model)
    except RuntimeError as error:
        raise ExportError(f"{checkpoint.path}: {error}") from error


def _find(path: Path) -> Path:
    """Turns what the user named into a file or a sharded checkpoint's folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ExportError(f"{path}: no such checkpoint, neither a file nor a folder; check the path")
    if is_sharded(path):
        return path
    steps = {
        int(match[1]): child
        for child in (path / "checkpoints").glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)(?:\.(?:pt|pth|safetensors))?", child.name))
    }
    finished = [step for step in sorted(steps) if steps[step].is_file() or is_sharded(steps[step])]
    if finished:
        return steps[finished[-1]]
    try:
        return find_weights(path)
    except RuntimeError as error:
        raise ExportError(
            f"{path}: neither a run (checkpoints/step_<n>), nor a sharded checkpoint ({INDEX_FILE}), nor a folder with "
            "weights; name the checkpoint itself"
        ) from error


def _run_folder(path: Path) -> Path | None:
    """Finds the run that a checkpoint belongs to: RUN/checkpoints/<checkpoint>, or the records beside a file."""
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return path.parent if (path.parent / "metrics.jsonl").is_file() else None


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Joins the names of nested mappings by dots; what is no tensor is left out."""
    flat: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        elif isinstance(value, Tensor):
            flat[f"{prefix}{name}"] = value
    return flat


def _split(name: str) -> tuple[Branch | None, str]:
    """Splits a tensor's name into branch and rest."""
    parts = name.split(".")
    while parts and parts[0] in _WRAPPERS:
        parts = parts[1:]
    if parts and parts[0] in _AVERAGES:
        return "teacher", ".".join(parts[1:])
    for branch in _BRANCHES:
        if parts and parts[0] == branch:
            return branch, ".".join(parts[1:])
    return None, ".".join(parts)


def _is_weight(name: str) -> bool:
    """Says whether a tensor without its branch can belong to a backbone, so that heads stay on the disk."""
    return not re.match(r"(?:optim|scaler|.*head)", name.split(".")[0])


def _choose(path: Path, found: list[Branch | None], wanted: Branch) -> Branch | None:
    """Decides which branch to read: the wanted one, or the whole where there are no branches."""
    present = {branch for branch in found if branch is not None}
    if wanted in present:
        return wanted
    if not present:
        return None
    raise ExportError(
        f"{path}: has no {wanted}, only a {' and a '.join(sorted(present))}; take it with --weights {min(present)}"
    )
