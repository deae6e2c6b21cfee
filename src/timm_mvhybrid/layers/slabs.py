"""Large batches on a CPU: a few images at a time, so that a mixer's wide tensors stay in memory that it has already.

A mixer widens its tokens two to five times. At 32 images such a tensor has tens of megabytes, which the allocator hands
back to the system and fetches anew, page by page, in every block; that takes longer than some of the products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# of a mixer's input: 8 images of 257 tokens, 384 wide, where MambaVision, Vim and Hydra are fastest
_NUMBERS_PER_SLAB = 8 * 257 * 384


def num_slabs(x: Tensor) -> int:
    """Says in how many parts a mixer should take its batch.

    Only where nothing can tell the difference: on a CPU, without gradients, and not while the computation is recorded
    by tracing, scripting, compiling or exporting. Images do not mix, so the result is the same.

    Args:
        x: Tokens, (batch, length, dim).

    Returns:
        1, or a number of parts of about 8 images.
    """
    # of other types are FX's proxies and distributed tensors
    if type(x) is not Tensor or x.device.type != "cpu" or torch.is_grad_enabled():
        return 1
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return 1
    return max(1, x.numel() // _NUMBERS_PER_SLAB) if x.shape[0] > 1 else 1


def in_slabs(mix: Callable[[Tensor], Tensor], x: Tensor, num_slabs: int) -> Tensor:
    """Applies a function to parts of a batch.

    Args:
        mix: (images, length, dim) → the same.
        x: Tokens, (batch, length, dim).
        num_slabs: Parts; at most one for each image is made.

    Returns:
        What the function returns for the whole batch.
    """
    return torch.cat([mix(slab) for slab in x.tensor_split(min(num_slabs, x.shape[0]))])
