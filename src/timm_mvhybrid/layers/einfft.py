"""The EinFFT channel mixer: a sparse complex perceptron on the spectrum of the tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from ..ops.precision import at_least_float32, autocast_disabled
from ..ops.spectral import inverse_token_dft, token_dft

NUM_BLOCKS = 4
"""Blocks of channels; the transform over them is written out as a butterfly."""


class EinFFT(nn.Module):
    """Mixes channels in the frequency domain.

    Channels are cut into four blocks. The orthonormal Fourier transform over (tokens, blocks) is followed by two
    complex affine maps a block, with ReLU between them and soft-shrinkage after them, each on real and imaginary part
    separately; the result is the real part of the inverse transform. Everything runs in float32 (float64 for float64
    input), also under autocast. Source: Patro and Agneeswaran, "SiMBA" (arXiv 2403.15360), section 3.2.

    Args:
        d_model: Width of the tokens, a multiple of four.
        threshold: Soft-shrinkage, in units of the orthonormal spectrum.
        device: Where the parameters are made.
        dtype: Their dtype. They hold real and imaginary parts along the first axis, never a complex dtype.

    Raises:
        ValueError: ``d_model`` is not a multiple of four.
    """

    def __init__(
        self,
        d_model: int,
        threshold: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_model % NUM_BLOCKS:
            raise ValueError(f"d_model is {d_model}; EinFFT needs a multiple of {NUM_BLOCKS}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.threshold = d_model, threshold
        width = d_model // NUM_BLOCKS
        self.complex_weight_1 = nn.Parameter(torch.empty(2, NUM_BLOCKS, width, width, **dd))
        self.complex_weight_2 = nn.Parameter(torch.empty(2, NUM_BLOCKS, width, width, **dd))
        self.complex_bias_1 = nn.Parameter(torch.empty(2, NUM_BLOCKS, width, **dd))
        self.complex_bias_2 = nn.Parameter(torch.empty(2, NUM_BLOCKS, width, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every parameter from a normal distribution of standard deviation 0.02."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens (batch, length, d_model); returns float32 (float64 for float64 input)."""
        return einfft(
            x,
            self.complex_weight_1,
            self.complex_bias_1,
            self.complex_weight_2,
            self.complex_bias_2,
            self.threshold,
        )


@register_notrace_function
def einfft(
    x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, threshold: float
) -> Tensor:
    """Computes :class:`EinFFT`; a leaf for FX, and scriptable.

    Args:
        x: Tokens, (batch, length, d_model).
        weight_1: First maps, (2, 4, d_model / 4, d_model / 4): real and imaginary part, block, input, output channel.
        bias_1: (2, 4, d_model / 4).
        weight_2: Second maps, of the shape of ``weight_1``.
        bias_2: Of the shape of ``bias_1``.
        threshold: Soft-shrinkage.

    Returns:
        (batch, length, d_model) in float32 or float64.
    """
    if torch.jit.is_scripting():
        return _einfft(x, weight_1, bias_1, weight_2, bias_2, threshold)
    else:
        with autocast_disabled(x.device.type):
            return _einfft(x, weight_1, bias_1, weight_2, bias_2, threshold)


def _einfft(
    x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, threshold: float
) -> Tensor:
    x = at_least_float32(x)
    length = x.shape[1]
    real, imaginary = _spectrum(x)

    # The maps break the conjugate symmetry, so the negative frequencies pass them too: block b at −k holds the
    # conjugate of block −b at k. Rows: frequency k of the block, then its frequency −k.
    mirror = [0, 3, 2, 1]
    rows_real = torch.cat([real, real[mirror]], dim=2)
    rows_imaginary = torch.cat([imaginary, -imaginary[mirror]], dim=2)
    rows = torch.cat([rows_real, rows_imaginary], dim=-1)
    shape = rows.shape
    rows = rows.flatten(1, 2)
    rows = F.relu(_complex_affine(rows, weight_1, bias_1))
    rows = F.softshrink(_complex_affine(rows, weight_2, bias_2), threshold).view(shape)

    # Of the inverse transform only the real part is wanted, that of the conjugate-symmetric half of the spectrum:
    # (Z[b, k] + conj Z[−b, −k]) / 2.
    mapped_real, mapped_imaginary = rows.chunk(2, dim=-1)
    real, real_negative = mapped_real.chunk(2, dim=2)
    imaginary, imaginary_negative = mapped_imaginary.chunk(2, dim=2)
    real = (real + real_negative[mirror]) * 0.5
    imaginary = (imaginary - imaginary_negative[mirror]) * 0.5
    return _tokens(real, imaginary, length)


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Transforms real tokens (batch, length, d_model) over blocks and tokens.

    Returns the real and the imaginary part, (4, batch, length // 2 + 1, d_model / 4), block first.
    """
    b0, b1, b2, b3 = x.chunk(4, dim=-1)
    even, odd = b0 + b2, b1 + b3
    p, q = b0 - b2, b1 - b3
    # blocks 0 and 2 are real before the token transform; blocks 1 and 3 are p − iq and p + iq
    real, imaginary = token_dft(torch.stack([even + odd, p, even - odd, q]) * 0.5)
    r0, rp, r2, rq = real.unbind(0)
    i0, ip, i2, iq = imaginary.unbind(0)
    return torch.stack([r0, rp + iq, r2, rp - iq]), torch.stack([i0, ip - rq, i2, ip + rq])


def _tokens(real: Tensor, imaginary: Tensor, length: int) -> Tensor:
    """Inverts :func:`_spectrum` for a conjugate-symmetric spectrum."""
    r0, r1, r2, r3 = real.unbind(0)
    i0, i1, i2, i3 = imaginary.unbind(0)
    # the inverse butterfly over the blocks: i (Z1 − Z3) has real part i3 − i1 and imaginary part r1 − r3
    real = torch.stack([r0 + r2 + r1 + r3, r0 - r2 + i3 - i1, r0 + r2 - r1 - r3, r0 - r2 - i3 + i1])
    imaginary = torch.stack([i0 + i2 + i1 + i3, i0 - i2 + r1 - r3, i0 + i2 - i1 - i3, i0 - i2 - r1 + r3])
    blocks = inverse_token_dft(real * 0.5, imaginary * 0.5, length)
    return torch.cat(blocks.unbind(0), dim=-1)


def _complex_affine(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Maps rows [real | imaginary], (4, rows, 2 · width), by complex weights as one real product a block."""
    weight, bias = weight.to(rows.dtype), bias.to(rows.dtype)
    real, imaginary = weight[0], weight[1]
    matrix = torch.cat([torch.cat([real, imaginary], dim=-1), torch.cat([-imaginary, real], dim=-1)], dim=-2)
    return torch.baddbmm(torch.cat([bias[0], bias[1]], dim=-1).unsqueeze(1), rows, matrix)
