"""Depthwise convolution along the tokens, without leaving token-major layout."""

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, left: int) -> Tensor:
    """Convolves every channel with its own kernel over zero-padded tokens; the length stays.

    Runs as a two-dimensional convolution of height one: its channels-last kernels read token-major memory as it lies,
    where the one-dimensional kernels of the CPU copy it and take ten times as long.

    Args:
        x: Tokens, (batch, length, channels).
        weight: Kernels as in ``nn.Conv1d``, (channels, 1, kernel).
        bias: (channels,), or None.
        left: Zeros before the first token: kernel − 1 makes the convolution causal.

    Returns:
        (batch, length, channels).
    """
    channels, _, kernel = weight.shape
    padded = F.pad(x, [0, 0, left, kernel - 1 - left])
    image = padded.transpose(1, 2).unsqueeze(2)
    return F.conv2d(image, weight.unsqueeze(2), bias, groups=channels).squeeze(2).transpose(1, 2)
