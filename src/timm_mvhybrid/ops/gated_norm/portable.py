"""The gated norm in functional operations: what compilers, exporters and the transforms of torch.func read."""

import torch.nn.functional as F
from torch import Tensor


def gated_norm_portable(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Computes the gated norm; arguments and result as for :func:`.gated_norm`, in the dtype of ``weight``."""
    normed = F.rms_norm(y.to(weight.dtype), weight.shape, weight, eps)
    return (normed * F.silu(z)).to(y.dtype)
