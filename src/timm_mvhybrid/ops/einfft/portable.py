"""EinFFT in functional operations: what autograd, exporters and the transforms of torch.func read.

Its steps, which ``cpu.py`` takes in place: butterfly over the blocks, Fourier transform over the tokens, two affine
maps with ReLU between them, soft-shrinkage, and both transforms back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spectral import inverse_token_dft, token_dft


def einfft_portable(
    x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, threshold: float
) -> Tensor:
    """Computes EinFFT; arguments as for :func:`.einfft`, in one dtype, float32 or float64, as is the result."""
    maps_1, bias_1 = _real_maps(weight_1, True), _real_biases(bias_1)
    maps_2, bias_2 = _real_maps(weight_2, False), _real_biases(bias_2)
    batch, length, dim = x.shape
    rows = _spectrum(x)
    positive = torch.baddbmm(bias_1[0].unsqueeze(1), rows, maps_1[0])
    negative = torch.baddbmm(bias_1[1].unsqueeze(1), rows, maps_1[1])
    positive = torch.baddbmm(bias_2[0].unsqueeze(1), F.relu(positive), maps_2[0])
    negative = torch.baddbmm(bias_2[1].unsqueeze(1), F.relu(negative), maps_2[1])
    real, imaginary = F.softshrink(positive, threshold).chunk(2, dim=-1)
    real_negative, imaginary_negative = F.softshrink(negative, threshold).chunk(2, dim=-1)

    # Of the inverse transform only the real part is needed, that of the conjugate-symmetric half of the spectrum:
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


def _real_maps(weight: Tensor, conjugate: bool) -> Tensor:
    """Writes complex maps as real ones, for positive and for negative frequencies.

    The maps break the conjugate symmetry of the spectrum, so the negative frequencies pass them too. Block −b at −k
    holds the conjugate of block b at k: the same rows, with the sign of the imaginary inputs and the other block's map.
    ``conjugate`` says that the rows of the negative frequencies stand for their conjugates, as at the first map.
    (2, 4, width, width) becomes (2, 4, 2 · width, 2 · width).
    """
    real, imaginary = weight.unbind(0)
    from_real = torch.cat([real, imaginary], dim=-1)
    from_imaginary = torch.cat([-imaginary, real], dim=-1)
    positive = torch.cat([from_real, from_imaginary], dim=-2)
    negative = torch.cat([from_real, -from_imaginary], dim=-2) if conjugate else positive
    return torch.stack([positive, _mirrored(negative)])


def _real_biases(bias: Tensor) -> Tensor:
    """Writes complex biases, (2, 4, width), as real ones for both signs of the frequency, (2, 4, 2 · width)."""
    joined = torch.cat([bias[0], bias[1]], dim=-1)
    return torch.stack([joined, _mirrored(joined)])


def _mirrored(blocks: Tensor) -> Tensor:
    """Reorders the blocks 0, 1, 2, 3 to 0, −1, −2, −3 modulo four."""
    return torch.cat([blocks[:1], blocks[1:].flip(0)])
