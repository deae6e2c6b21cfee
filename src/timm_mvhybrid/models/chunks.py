"""Large batches on a CPU: a few images at a time, so that wide tensors fit in memory that the process already has.

A block widens its tokens two to five times. At 32 images such a tensor has tens of megabytes, which the allocator
returns to the system and fetches again, page by page, in every block; that takes longer than some of the products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

# of tokens: 12 images of 257 tokens, 384 wide
_NUMBERS_PER_CHUNK = 12 * 257 * 384


def num_chunks(x: Tensor, blocks: nn.Module) -> int:
    """Says in how many chunks, of about 12 images, blocks should take their batch of tokens, (batch, length, dim).

    More than one only where it cannot be noticed: on a CPU, in evaluation, without gradients, without hooks, and not
    while the computation is recorded by tracing, compiling or exporting. Images do not mix, so the result is the same.
    """
    # FX's proxies and distributed tensors are of other types
    if type(x) is not Tensor or x.device.type != "cpu" or torch.is_grad_enabled() or blocks.training:
        return 1
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return 1
    parts = min(x.shape[0], x.numel() // _NUMBERS_PER_CHUNK)
    return 1 if parts < 2 or has_hooks(blocks) else parts


def has_hooks(blocks: nn.Module) -> bool:
    """Says whether a hook would see parts of a batch."""
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return True
    return any(module._forward_hooks or module._forward_pre_hooks for module in blocks.modules())
