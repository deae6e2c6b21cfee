"""The specification of EinFFT: complex numbers, torch's own transforms, differentiated by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor


def einfft_reference(
    x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, threshold: float
) -> Tensor:
    """Computes EinFFT as its formula is written.

    Formula, source and arguments: :func:`.einfft`; all in one dtype, float32 or float64, as is the result.

    Examples:
        >>> import torch
        >>> identity = torch.stack([torch.eye(1).repeat(4, 1, 1), torch.zeros(4, 1, 1)])
        >>> nothing = torch.zeros(2, 4, 1)
        >>> einfft_reference(torch.ones(1, 1, 4), identity, nothing, identity, nothing, 0.0)
        tensor([[[1., 1., 1., 1.]]])
    """
    spectrum = torch.fft.fft2(x.unflatten(-1, (4, -1)), dim=(1, 2), norm="ortho")
    hidden = _affine(spectrum, weight_1, bias_1)
    hidden = torch.complex(F.relu(hidden.real), F.relu(hidden.imag))
    mapped = _affine(hidden, weight_2, bias_2)
    mapped = torch.complex(F.softshrink(mapped.real, threshold), F.softshrink(mapped.imag, threshold))
    return torch.fft.ifft2(mapped, dim=(1, 2), norm="ortho").real.flatten(2)


def _affine(spectrum: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Maps the channels of every block: (batch, length, 4, width) complex → the same."""
    return torch.einsum("bnki,kio->bnko", spectrum, torch.complex(weight[0], weight[1])) + torch.complex(
        bias[0], bias[1]
    )
