"""EinFFT as its paper writes it down: a complex FFT over tokens and blocks, products block by block."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def complex_einfft(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    threshold: float,
    product: Literal["real", "complex"],
) -> Tensor:
    """Mixes channels in the frequency domain, with complex tensors.

    Source: Patro and Agneeswaran, "SiMBA" (arXiv 2403.15360), section 3.2. Arguments as for
    :func:`timm_mvhybrid.layers.einfft.einfft`.

    Args:
        x: Tokens, (batch, length, d_model).
        weight_1: First maps, (2, 4, d_model / 4, d_model / 4).
        bias_1: (2, 4, d_model / 4).
        weight_2: Second maps.
        bias_2: Second biases.
        threshold: Soft-shrinkage.
        product: Whether a complex product is four real ones, or one of complex tensors.

    Returns:
        (batch, length, d_model).
    """
    batch, length, d_model = x.shape
    spectrum = torch.fft.fft2(x.view(batch, length, 4, d_model // 4), dim=(1, 2), norm="ortho")
    affine = _four_real_products if product == "real" else _complex_product
    real, imaginary = affine(spectrum.real, spectrum.imag, weight_1, bias_1)
    real, imaginary = affine(F.relu(real), F.relu(imaginary), weight_2, bias_2)
    shrunk = F.softshrink(torch.stack([real, imaginary], dim=-1), threshold)
    tokens = torch.fft.ifft2(torch.view_as_complex(shrunk), dim=(1, 2), norm="ortho")
    return tokens.real.reshape(batch, length, d_model)


def _four_real_products(
    real: Tensor, imaginary: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    return (
        _product(real, weight[0]) - _product(imaginary, weight[1]) + bias[0],
        _product(real, weight[1]) + _product(imaginary, weight[0]) + bias[1],
    )


def _complex_product(real: Tensor, imaginary: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    result = _product(torch.complex(real, imaginary), torch.complex(weight[0], weight[1]))
    result = result + torch.complex(bias[0], bias[1])
    return result.real, result.imag


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("...bd,bdk->...bk", rows, weight)
