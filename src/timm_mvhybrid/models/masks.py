"""Checked masks: patches that are hidden from the model, and tokens that attention may not see."""

import math

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from ..runtime.errors import ParameterError


def mask_patches(x: Tensor, mask: Tensor, mask_token: Tensor | None) -> Tensor:
    """Puts the mask token where a mask is True; scriptable.

    Args:
        x: Patch tokens, (batch, patches, dim) or (batch, rows, columns, dim).
        mask: True where a patch is hidden, bool, (batch, patches), row by row.
        mask_token: What stands for a hidden patch, (1, dim), or None.

    Returns:
        The tokens, in the shape of ``x``.

    Raises:
        ParameterError: The mask does not fit, or there is no mask token.
    """
    if mask_token is None:
        raise ParameterError(
            "a `mask` was given, but the model has no mask token; create it with `mask_token=True`"
        )
    if mask.dtype != torch.bool:
        raise ParameterError(
            f"`mask` has dtype {mask.dtype}; expected torch.bool, True where a patch is hidden"
        )
    num_patches = x[0, ..., 0].numel()
    if mask.ndim != 2 or mask.shape[0] != x.shape[0] or mask.shape[1] != num_patches:
        raise ParameterError(
            f"`mask` has shape {mask.shape}; expected (batch, patches) = ({x.shape[0]}, {num_patches})"
        )
    return torch.where(mask.view(x.shape[:-1]).unsqueeze(-1), mask_token.to(x.dtype), x)


@register_notrace_function
def resolve_attention_mask(
    x: Tensor, attn_mask: Tensor | None, is_causal: bool, has_ssm: bool
) -> Tensor | None:
    """Turns timm's two mask arguments into one mask that every supported timm takes; a leaf for FX, and scriptable.

    Args:
        x: Tokens, (batch, length, dim).
        attn_mask: Attention mask, or None.
        is_causal: Whether to make a causal mask.
        has_ssm: Whether the model has state-space blocks.

    Returns:
        The mask, or None.

    Raises:
        ParameterError: State-space blocks have no attention to mask, or both masks were given.
    """
    if attn_mask is None and not is_causal:
        return None
    if has_ssm:
        raise ParameterError(
            "state-space blocks have no attention to mask; `attn_mask` and `is_causal` need `ssm_depth=0`"
        )
    if attn_mask is not None and is_causal:
        raise ParameterError("give `attn_mask` or `is_causal`, not both")
    if attn_mask is None:
        length = x.shape[1]
        return torch.full((length, length), -math.inf, dtype=x.dtype, device=x.device).triu(1)
    return attn_mask
