"""Depthwise convolution along the tokens, without leaving token-major layout."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor


@register_notrace_function
def depthwise_conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, left: int) -> Tensor:
    """Convolves every channel with its own kernel over zero-padded tokens, then applies SiLU; the length stays.

    A leaf for FX, and scriptable.

    Runs as a two-dimensional convolution of height one: its channels-last kernels read token-major memory as it is,
    where the one-dimensional kernels of the CPU copy it and take ten times as long. A kernel that is not centred gets
    zero taps until it is, because those cost less than a padded copy of the tokens.

    Args:
        x: Tokens, (batch, length, channels).
        weight: Kernels as in ``nn.Conv1d``, (channels, 1, taps).
        bias: (channels,), or None.
        left: Taps before the present token: taps − 1 makes the convolution causal.

    Returns:
        (batch, length, channels).
    """
    channels, _, taps = weight.shape
    right = taps - 1 - left
    reach = max(left, right)
    centred = F.pad(weight, [reach - left, reach - right])
    image = x.transpose(1, 2).unsqueeze(2)
    convolved = F.conv2d(image, centred.unsqueeze(2), bias, padding=[0, reach], groups=channels)
    # in place where autograd does not need the convolution's output; a trace must not depend on the mode of recording
    in_place = not (torch.is_grad_enabled() or torch.jit.is_tracing())
    return F.silu(convolved.squeeze(2).transpose(1, 2), inplace=in_place)
