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
    batch, length, dim = x.shape
    rows = _spectrum(x)
    weight_1, bias_1 = weight_1.to(x.dtype), bias_1.to(x.dtype)
    weight_2, bias_2 = weight_2.to(x.dtype), bias_2.to(x.dtype)

    # The maps break the conjugate symmetry, so the negative frequencies pass them too. Block −b at −k holds the
    # conjugate of block b at k: the same rows, with the sign of the imaginary inputs and the other block's maps.
    mirror = [0, 3, 2, 1]
    positive = _complex_affine(rows, weight_1, bias_1, False)
    negative = _complex_affine(rows, weight_1[:, mirror], bias_1[:, mirror], True)
    positive = _complex_affine(F.relu(positive, inplace=True), weight_2, bias_2, False)
    negative = _complex_affine(F.relu(negative, inplace=True), weight_2[:, mirror], bias_2[:, mirror], False)
    real, imaginary = F.softshrink(positive, threshold).chunk(2, dim=-1)
    real_negative, imaginary_negative = F.softshrink(negative, threshold).chunk(2, dim=-1)

    # Of the inverse transform only the real part is wanted, that of the conjugate-symmetric half of the spectrum:
    # (Z[b, k] + conj Z[−b, −k]) / 2; the half goes into the scale.
    shape = [4, batch, length // 2 + 1, dim // 4]
    real = (real + real_negative).view(shape)
    imaginary = (imaginary - imaginary_negative).view(shape)
    return _tokens(real, imaginary, length, 0.5)


def _spectrum(x: Tensor) -> Tensor:
    """Transforms real tokens (batch, length, d_model) over blocks and tokens.

    Returns rows [real | imaginary] of every block, (4, batch · (length // 2 + 1), d_model / 2), as a view.
    """
    b0, b1, b2, b3 = x.chunk(4, dim=-1)
    even, odd = b0 + b2, b1 + b3
    # blocks 0 and 2 are real before the token transform; blocks 1 and 3 are p − iq and p + iq
    real, imaginary = token_dft(torch.cat([even + odd, b0 - b2, even - odd, b1 - b3], dim=-1), 0.5)
    r0, rp, r2, rq = real.chunk(4, dim=-1)
    i0, ip, i2, iq = imaginary.chunk(4, dim=-1)
    rows = torch.cat([r0, i0, rp + iq, ip - rq, r2, i2, rp - iq, ip + rq], dim=-1)
    return rows.flatten(0, 1).unflatten(1, (4, -1)).transpose(0, 1)


def _tokens(real: Tensor, imaginary: Tensor, length: int, scale: float) -> Tensor:
    """Inverts :func:`_spectrum` for a conjugate-symmetric spectrum, (4, batch, length // 2 + 1, d_model / 4)."""
    r0, r1, r2, r3 = real.unbind(0)
    i0, i1, i2, i3 = imaginary.unbind(0)
    # the inverse butterfly over the blocks: i (Z1 − Z3) has real part i3 − i1 and imaginary part r1 − r3
    r_sum, r_difference, r_odd, r_turned = r0 + r2, r0 - r2, r1 + r3, r1 - r3
    i_sum, i_difference, i_odd, i_turned = i0 + i2, i0 - i2, i1 + i3, i3 - i1
    real = torch.cat([r_sum + r_odd, r_difference + i_turned, r_sum - r_odd, r_difference - i_turned], dim=-1)
    imaginary = torch.cat(
        [i_sum + i_odd, i_difference + r_turned, i_sum - i_odd, i_difference - r_turned], dim=-1
    )
    return inverse_token_dft(real, imaginary, length, 0.5 * scale)


def _complex_affine(rows: Tensor, weight: Tensor, bias: Tensor, conjugate: bool) -> Tensor:
    """Maps rows [real | imaginary], (4, rows, 2 · width), by complex weights as one real product a block.

    With ``conjugate`` the rows stand for their complex conjugates.
    """
    real, imaginary = weight[0], weight[1]
    from_real = torch.cat([real, imaginary], dim=-1)
    from_imaginary = torch.cat([imaginary, -real] if conjugate else [-imaginary, real], dim=-1)
    matrix = torch.cat([from_real, from_imaginary], dim=-2)
    return torch.baddbmm(torch.cat([bias[0], bias[1]], dim=-1).unsqueeze(1), rows, matrix)
