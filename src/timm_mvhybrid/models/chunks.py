"""Large batches on a CPU: a few images at a time, so that wide tensors stay in memory that the process has already.

A block widens its tokens two to five times. At 32 images such a tensor has tens of megabytes, which the allocator hands
back to the system and fetches anew, page by page, in every block; that takes longer than some of the products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

# of tokens: 12 images of 257 tokens, 384 wide
_NUMBERS_PER_CHUNK = 12 * 257 * 384


def num_chunks(x: Tensor, blocks: nn.Module) -> int:
    """Says in how many parts blocks should take their batch.

    Only where nobody can tell: on a CPU, in evaluation, without gradients, without hooks, and not while the computation
    is recorded by tracing, compiling or exporting. Images do not mix, so the result is the same.

    Args:
        x: Tokens, (batch, length, dim).
        blocks: What they go through.

    Returns:
        1, or a number of parts of about 12 images.
    """
    # of other types are FX's proxies and distributed tensors
    if type(x) is not Tensor or x.device.type != "cpu" or torch.is_grad_enabled() or blocks.training:
        return 1
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return 1
    parts = min(x.shape[0], x.numel() // _NUMBERS_PER_CHUNK)
    return 1 if parts < 2 or _has_hooks(blocks) else parts


def _has_hooks(blocks: nn.Module) -> bool:
    """Whether a hook would see parts of the batch."""
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return True
    return any(module._forward_hooks or module._forward_pre_hooks for module in blocks.modules())
