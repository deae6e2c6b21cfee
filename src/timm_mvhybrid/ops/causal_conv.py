"""Vim's causal convolution with its activation: on causal-conv1d's CUDA kernels where they are installed."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from .depthwise import depthwise_conv_silu
from .implementation import why_not_causal_conv1d

KERNEL_TAPS = (2, 3, 4)
"""Lengths of the kernels that causal-conv1d takes; its channels must be a multiple of eight."""


@register_notrace_function
def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool = False) -> Tensor:
    """Convolves every channel causally along the tokens, then applies SiLU. A leaf for FX, and scriptable.

    Args:
        x: Tokens, (batch, length, channels).
        weight: Kernels as in ``nn.Conv1d``, (channels, 1, taps).
        bias: (channels,), or None.
        reverse: Whether time runs from the last token to the first.

    Returns:
        (batch, length, channels).
    """
    if not torch.jit.is_scripting():
        if _package_takes(x, weight):
            if reverse:
                return _package_conv(x.flip(1), weight, bias).flip(1)
            return _package_conv(x, weight, bias)
    if reverse:
        return depthwise_conv_silu(x, weight.flip(-1), bias, 0)
    return depthwise_conv_silu(x, weight, bias, weight.shape[-1] - 1)


def _package_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether causal-conv1d is chosen, and takes tensors like these."""
    if why_not_causal_conv1d(x.device.type, x.dtype) is not None:
        return False
    strides_fit = x.stride(0) % 8 == 0 and x.stride(1) % 8 == 0 and x.stride(2) == 1
    return weight.shape[-1] in KERNEL_TAPS and x.shape[2] % 8 == 0 and strides_fit


def _package_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Calls the package on a channels-last view, without a copy."""
    from causal_conv1d import causal_conv1d_fn

    weight = weight.squeeze(1).to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    return causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)
