"""The specification of the gated norm: its formula, differentiated by autograd."""

from torch import Tensor

from ..precision import accumulation_dtype


def gated_norm_reference(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Computes y / √(mean(y²) + eps) · weight · z / (1 + exp(−z)), the mean over channels.

    Source and arguments: :func:`.gated_norm`; computed in float32, or in float64 for float64 input.

    Examples:
        >>> import torch
        >>> gated_norm_reference(torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1, 2), torch.ones(2), 0.0)
        tensor([[[0., 0.]]])
    """
    dtype = accumulation_dtype(y.dtype)
    tokens, gate = y.to(dtype), z.to(dtype)
    length = (tokens.square().mean(-1, keepdim=True) + eps).sqrt()
    return (tokens / length * weight.to(dtype) * gate * gate.sigmoid()).to(y.dtype)
