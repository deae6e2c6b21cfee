"""The EinFFT channel mixer: a sparse complex perceptron on the spectrum of the tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.einfft import NUM_BLOCKS, einfft
from ..runtime.errors import ParameterError


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
        ParameterError: ``d_model`` is not a multiple of four.
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
            raise ParameterError(f"`d_model` is {d_model}; EinFFT needs a multiple of {NUM_BLOCKS}")
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
