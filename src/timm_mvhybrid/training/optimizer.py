"""Parameters of the student → groups with their own learning rate and decay, AdamW, and clipping by submodule."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# wrappers that put a name of their own into their parameters' names
_WRAPPERS = re.compile(r"_checkpoint_wrapped_module\.|_orig_mod\.|(?<=^)module\.")
_STATE_SPACE = re.compile(r"(?:A_log|A_b_log|A_imag|A_b_imag|D|D_b|dt_bias|complex_(?:weight|bias)_\d)$")


def parameter_groups(
    student: Any,
    *,
    patch_embed_lr_multiplier: float = 0.2,
    layer_decay: float = 1.0,
    decay_ssm: bool = True,
) -> list[dict[str, Any]]:
    """Sorts a student's parameters by what their learning rate and weight decay are multiplied with.

    Learning rate: the patch embedding's is times ``patch_embed_lr_multiplier``; with n blocks, block i's (from 0) is
    times layer_decay^(n − i), that of patch embedding and tokens times layer_decay^(n + 1); the final norm's and
    the heads' are as they are.

    Weight decay: none for biases, norms, LayerScale and other vectors, nor for what the backbone's
    ``no_weight_decay()`` names and the mask token.

    ``A_log``, ``D``, ``dt_bias`` and EinFFT's complex matrices and biases decay if ``decay_ssm``. DINOv2's code decides
    by names alone, spares what ends in ".bias" or has "norm" or "gamma" in it, and so decayed all of these in the
    published models; Mamba's authors spare ``A_log``, ``D`` and ``dt_bias``, since decay drives eigenvalues to −1 and
    skips to 0. The names would also decay class token and position embedding; timm's rule, to spare them, stands here.

    Source: DINOv2 (arXiv 2304.07193) for the multipliers.

    Args:
        student: A :class:`~timm_mvhybrid.ssl.student_teacher.Network`, sharded or not.
        patch_embed_lr_multiplier: Factor of the patch embedding's learning rate.
        layer_decay: Factor of the learning rate from a block to the one before it.
        decay_ssm: Whether the parameters of scans and EinFFT decay.

    Returns:
        Groups for an optimiser, each with ``params``, ``lr_multiplier``, ``wd_multiplier`` and
        ``is_last_layer``; every parameter that needs a gradient is in one.
    """
    spared = {f"backbone.{name}" for name in (*student.backbone.no_weight_decay(), "mask_token")}
    num_blocks = len(student.backbone.blocks)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for given, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        name = _WRAPPERS.sub("", given)
        lr_multiplier = layer_decay ** (num_blocks + 1 - _layer(name, num_blocks))
        if name.startswith("backbone.patch_embed."):
            lr_multiplier *= patch_embed_lr_multiplier
        if _STATE_SPACE.search(name) and name.startswith("backbone."):
            decays = decay_ssm
        else:
            decays = not (name in spared or parameter.ndim <= 1 or re.search(r"bias$|norm|gamma", name))
        key = (lr_multiplier, float(decays), ".last_layer" in name)
        multipliers = {"lr_multiplier": key[0], "wd_multiplier": key[1], "is_last_layer": key[2]}
        groups.setdefault(key, {"params": [], **multipliers})["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, num_blocks: int) -> int:
    """Counts what stands below a parameter: 0 for stem and tokens, i + 1 for block i, num_blocks + 1 above."""
    if match := re.match(r"backbone\.blocks\.(\d+)\.", name):
        return int(match[1]) + 1
    stem = r"backbone\.(?:patch_embed|norm_pre|pos_embed|cls_token|reg_token|mask_token|dist_token)"
    return 0 if re.match(stem, name) else num_blocks + 1


def make_adamw(
    groups: Iterable[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
) -> torch.optim.AdamW:
    """Makes the optimiser; ``apply_schedules`` sets its learning rates before the first step.

    Returns:
        AdamW, by one kernel for many parameters: fused on CUDA, foreach elsewhere. All parameters have their moments,
        zero, from the start: AdamW would make them at the first gradient, and a run could not go on from a checkpoint
        that lacks those of a parameter without any so far.
    """
    groups = list(groups)
    on_cuda = all(parameter.is_cuda for group in groups for parameter in group["params"])
    kind: dict[str, bool] = {"fused": True} if on_cuda else {"foreach": True}
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, weight_decay=0.0, **kind)
    for parameter in (parameter for group in groups for parameter in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device if on_cuda else "cpu"),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def apply_schedules(
    optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float, last_layer_lr: float
) -> None:
    """Sets learning rate and weight decay of every group for the coming step.

    Args:
        optimizer: Made of ``parameter_groups``.
        lr: Learning rate.
        weight_decay: Weight decay.
        last_layer_lr: Learning rate of the prototypes, 0 while they are frozen.
    """
    for group in optimizer.param_groups:
        group["lr"] = (last_layer_lr if group["is_last_layer"] else lr) * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["wd_multiplier"]


def clip_gradients(module: nn.Module, max_norm: float | None = 3.0) -> dict[str, Tensor]:
    """Limits the gradient norm of each child of a module by itself, in place; a parameter of its own counts as a child.

    Args:
        module: A network, sharded or not; every process must call it.
        max_norm: Largest norm of the gradient of each child, such as backbone and heads; None or 0 for no limit.

    Returns:
        The norms before, by the child's name (``backbone``, ``dino_head``, …), of the whole gradients; scalars on the
        device, not finite where a gradient is not.
    """
    children: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            children.setdefault(name.partition(".")[0], []).append(parameter)
    norms: dict[str, Tensor] = {}
    for name, parameters in children.items():
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm or torch.inf)
        # of a sharded module it is a DTensor
        whole = getattr(norm, "full_tensor", None)
        norms[name] = norm if whole is None else whole()
    return norms
