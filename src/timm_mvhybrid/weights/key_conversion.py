"""Any program's checkpoint → the names and tensors of one backbone in it; wrappers are removed here and nowhere else.

A backbone is known by its patch projection, which every accepted format calls ``patch_embed.proj.weight``: whatever
precedes that name is the backbone's prefix, whichever training framework, wrapper or average of the weights put it
there. Names that do not begin with it belong to heads, losses and optimisers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from .errors import CheckpointError

_logger = logging.getLogger(__name__)

Branch = Literal["teacher", "student"]

# modules that wrap another one, at any depth: DDP, SWA and DeepSpeed, torch.compile, FSDP, activation checkpointing
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module")
_DOT = rf"\.(?:(?:{'|'.join(_WRAPPERS)})\.)*"
# the later ones serve where a damaged file lacks the projection
_ANCHORS = ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed")
# what to do about weights that are scattered over processes
GATHER = (
    "save the whole weights with torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True)), or save by torch.distributed.checkpoint.save and give its folder to "
    "'timm-mvhybrid export'"
)
# words of a prefix: an average of the weights over the steps comes before the weights, these before a named student
_AVERAGES = {"teacher", "ema", "momentum", "target", "averaged", "average", "swa", "shadow"}
_STUDENTS = {"student", "online"}
# of two places of equal rank, the one that frameworks intend to be loaded
_CONTAINERS = ("state_dict", "model")
# what is found beside a backbone under the same prefix
_NO_WEIGHT = re.compile(r"optim|scaler|n_averaged$|.+head")
_FLATTENED = re.compile(r"(?:.*\.)?_?flat_param(?:_\d+)?")


class KeyConversionError(CheckpointError):
    """A checkpoint in which no whole backbone was found; the caller that read the file adds its name."""


@dataclass(frozen=True, kw_only=True)
class BackboneNames:
    """Where a backbone is found in a checkpoint.

    Attributes:
        prefix: What precedes all its names.
        branch: Whether it is an average of weights ("teacher") or what is averaged ("student"); None where the
            checkpoint has no such distinction.
        names: The checkpoint's names by the backbone's own.
    """

    prefix: str
    branch: Branch | None
    names: Mapping[str, str]


def take_backbone(
    checkpoint: Mapping[Any, Any], *, model_names: Collection[str] | None = None, branch: Branch = "teacher"
) -> tuple[BackboneNames, dict[str, Tensor]]:
    """Takes the tensors of one backbone out of a checkpoint.

    Args:
        checkpoint: A state dict, or nested mappings that hold one.
        model_names: All names of a model of another make, by which its weights are found; None for ours.
        branch: Whose weights are preferred.

    Returns:
        Where they were, and whole floating-point or integer tensors in memory by their own names.

    Raises:
        KeyConversionError: There is no backbone, there are several with nothing to choose by, or its weights are not
            whole.
    """
    tensors = flatten(checkpoint)
    found = find_backbone(
        tensors,
        model_names=model_names,
        branch=branch,
        equal=lambda names: all(_equal(tensors[first], tensors[second]) for first, second in names),
    )
    return found, {name: whole_tensor(source, tensors[source]) for name, source in found.names.items()}


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """Joins the names of nested mappings by dots.

    Returns:
        Tensors, and arrays as tensors; everything else is left out.
    """
    flat: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        elif isinstance(value, Tensor):
            flat[f"{prefix}{name}"] = value.detach()
        elif isinstance(value, numpy.ndarray) and value.dtype.kind in "fiub":
            flat[f"{prefix}{name}"] = torch.from_numpy(numpy.ascontiguousarray(value))
    return flat


def find_backbone(
    names: Collection[str],
    *,
    model_names: Collection[str] | None = None,
    branch: Branch = "teacher",
    equal: Callable[[Iterable[tuple[str, str]]], bool] = lambda names: False,
) -> BackboneNames:
    """Finds the one backbone that a checkpoint is about.

    An average of the weights (a teacher, an EMA, a momentum encoder) comes before the weights themselves, and these
    before a named student; with ``branch="student"`` the order is reversed.

    Args:
        names: All names of tensors in the checkpoint, nested ones joined by dots.
        model_names: All names of a model of another make; None for ours.
        branch: Whose weights are preferred.
        equal: Says whether the tensors of pairs of names are equal, so that one stands for both.

    Returns:
        The backbone; it may lack weights, and its branch may be the other one.

    Raises:
        KeyConversionError: There is none, or several with nothing to choose by.
    """
    prefixes = _prefixes(names) if model_names is None else _prefixes_of_model(names, model_names)
    if not prefixes:
        raise KeyConversionError(_what_else(names))
    ranks = {prefix: _rank(prefix, branch) for prefix in prefixes}
    best = [prefix for prefix in prefixes if ranks[prefix] == min(ranks.values())]
    backbones = [_collect(prefix, prefixes, names, model_names is None) for prefix in best]
    first = backbones[0]
    if flattened := _flattened(first):
        raise KeyConversionError(flattened)
    for other in backbones[1:]:
        if other.keys() != first.keys() or not equal((first[name], other[name]) for name in first):
            listed = " and ".join(f"'{prefix}'" for prefix in best)
            raise KeyConversionError(
                f"holds {len(best)} backbones, under {listed}, and nothing says which is meant; save the state dict of "
                f"one alone, without its prefix: {{name.removeprefix('{best[0]}'): value for name, value in ...}}"
            )
    if len(prefixes) > 1:
        others = ", ".join(f"'{prefix}'" for prefix in prefixes if prefix != best[0])
        _logger.info("Took the weights under '%s', not those under %s.", best[0], others)
    averages = [prefix for prefix in prefixes if _words(prefix) & _AVERAGES]
    whose: Branch | None = None
    if best[0] in averages:
        whose = "teacher"
    elif averages or _words(best[0]) & _STUDENTS:
        whose = "student"
    return BackboneNames(prefix=best[0], branch=whose, names=first)


def whole_tensor(name: str, tensor: Tensor) -> Tensor:
    """Makes a plain dense tensor of whatever kind of tensor a file holds.

    Raises:
        KeyConversionError: It is only a part of the weights, or a placeholder for them.
    """
    if tensor.is_meta:
        raise KeyConversionError(
            f"{name} is on the meta device: a shape without numbers; save the weights after they were loaded or trained"
        )
    placements = getattr(tensor, "placements", None)
    if placements is not None and hasattr(tensor, "to_local"):
        shape, tensor = tensor.shape, tensor.to_local()
        if tensor.shape != shape or any(placement.is_partial() for placement in placements):
            raise KeyConversionError(f"{name} is one process's part of a sharded tensor; {GATHER}")
    if tensor.numel() == 0:
        raise KeyConversionError(
            f"{name} is empty, as DeepSpeed's ZeRO-3 leaves it in each process's file; join them with the zero_to_fp32.py "
            "beside them, and give the file that it writes"
        )
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    # float8 has no arithmetic
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _pattern(anchor: str) -> re.Pattern[str]:
    """Matches a name that ends in an anchor, with wrappers in between, and captures what precedes it."""
    return re.compile(rf"(?P<prefix>.*?){_DOT.join(map(re.escape, anchor.split('.')))}", re.DOTALL)


def _prefixes(names: Collection[str]) -> list[str]:
    """Lists what precedes patch projections, shortest first."""
    for anchor in _ANCHORS:
        pattern = _pattern(anchor)
        matches = [match for name in names if (match := pattern.fullmatch(name))]
        found = [match["prefix"] for match in matches if not re.match("optim", match[0])]
        # a prefix that is not a module's, such as "vit_", counts where there is no other
        modules = [prefix for prefix in found if prefix == "" or prefix.endswith(".")]
        if found:
            return _in_order(modules or found)
    return []


def _prefixes_of_model(names: Collection[str], model_names: Collection[str]) -> list[str]:
    """Lists the prefixes under which all names of a model are found; "" if there are none."""
    anchor = _pattern(next(iter(model_names)))
    found = [match["prefix"] for name in names if (match := anchor.fullmatch(name))]
    covered = [
        prefix
        for prefix in found
        if (prefix == "" or prefix.endswith("."))
        and set(model_names) <= {_unwrapped(name[len(prefix) :]) for name in names if name.startswith(prefix)}
    ]
    return _in_order(covered) or [""]


def _in_order(prefixes: Iterable[str]) -> list[str]:
    return sorted(set(prefixes), key=lambda prefix: (len(prefix), prefix))


def _words(prefix: str) -> set[str]:
    return set(re.findall("[a-z]+", prefix.lower()))


def _rank(prefix: str, branch: Branch) -> tuple[int, int, int]:
    """Ranks the places of backbones; the lowest is taken."""
    words = _words(prefix)
    averages, students = len(words & _AVERAGES), len(words & _STUDENTS)
    container = prefix.split(".")[0]
    place = _CONTAINERS.index(container) if container in _CONTAINERS else len(_CONTAINERS)
    return (-averages, students, place) if branch == "teacher" else (averages, -students, place)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _collect(prefix: str, prefixes: Iterable[str], names: Iterable[str], drop_others: bool) -> dict[str, str]:
    """Lists a backbone's own names with those of the checkpoint."""
    inner = {
        other[len(prefix) :].split(".")[0] + "."
        for other in prefixes
        if other != prefix and other.startswith(prefix)
    }
    own: dict[str, str] = {}
    for source in names:
        rest = source[len(prefix) :]
        if not source.startswith(prefix) or any(rest.startswith(other) for other in inner):
            continue
        name = _unwrapped(rest)
        if drop_others and _NO_WEIGHT.match(name.split(".")[0]):
            continue
        if name in own:
            raise KeyConversionError(
                f"holds '{name}' twice, as '{own[name]}' and '{source}'; save one of them"
            )
        own[name] = source
    return own


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return first is second or (
        first.device.type == second.device.type == "cpu" and torch.equal(first, second)
    )


def _flattened(names: Iterable[str]) -> str:
    """Returns a message if some of the parameters are in one vector; "" otherwise."""
    found = next((name for name in names if _FLATTENED.fullmatch(name)), None)
    if found is None:
        return ""
    return f"holds FSDP's flattened parameters ('{found}'), which have neither names nor shapes; {GATHER}"


def _what_else(names: Collection[str]) -> str:
    """Describes a checkpoint in which no backbone was found, and says what to do."""
    if not names:
        return "holds no tensors at all; give the file that holds the weights"
    if flattened := _flattened(names):
        return flattened
    some = ", ".join(f"'{name}'" for name in list(names)[:3])
    return (
        f"none of its {len(names)} tensors is a backbone's patch projection ('{_ANCHORS[0]}' under any prefix); it holds "
        f"{some} ...: give the file with the backbone's weights, by the names of timm, DINOv2, the official repository or "
        "Vision Mamba"
    )
