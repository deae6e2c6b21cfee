"""The discrete Fourier transform over tokens, without complex dtypes: real tokens ↔ real and imaginary halves.

Real input has a conjugate-symmetric spectrum, so frequencies 0 … length // 2 carry it whole. Short sequences are
multiplied by the cosine and sine matrices, which is faster than an FFT at the lengths of image patches and exports
to graphs that know no complex numbers; long ones go through the FFT.
"""

import math

import torch
from torch import Tensor

MATRIX_LENGTH = 1100
"""Longest sequence that is multiplied by a matrix, (length × length) numbers; longer ones use the FFT."""

_BASES: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
_MAX_BASES = 64


def token_dft(x: Tensor, scale: float = 1.0, matrix_length: int = MATRIX_LENGTH) -> tuple[Tensor, Tensor]:
    """Transforms real tokens into the non-negative half of their orthonormal spectrum.

    X_k = length^-½ Σ_n x_n exp(−2πi k n / length) for k = 0 … length // 2.

    Args:
        x: Tokens, (..., length, channels), float32 or float64.
        scale: Factor of the result.
        matrix_length: Longest sequence that is multiplied by a matrix rather than given to the FFT.

    Returns:
        The real and the imaginary part, (..., length // 2 + 1, channels) each, in the dtype of ``x``.

    Examples:
        >>> import torch
        >>> real, imaginary = token_dft(torch.ones(4, 1))
        >>> real.flatten()
        tensor([2., 0., 0.])
    """
    length = x.shape[-2]
    half = length // 2 + 1
    if length <= matrix_length:
        spectrum = torch.matmul(forward_basis(length, x) * scale, x)
        return spectrum[..., :half, :], spectrum[..., half:, :]
    transformed = torch.fft.rfft(x * scale, dim=-2, norm="ortho")
    return transformed.real, transformed.imag


def inverse_token_dft(
    real: Tensor, imaginary: Tensor, length: int, scale: float = 1.0, matrix_length: int = MATRIX_LENGTH
) -> Tensor:
    """Transforms a half spectrum back into real tokens; the inverse of ``token_dft``.

    The imaginary parts at frequency 0 and, for even lengths, at length / 2 do not contribute.

    Args:
        real: Real part, (..., length // 2 + 1, channels).
        imaginary: Imaginary part, of the same shape.
        length: Number of tokens.
        scale: Factor of the result.
        matrix_length: As for ``token_dft``.

    Returns:
        Tokens, (..., length, channels), in the dtype of ``real``.
    """
    if length <= matrix_length:
        spectrum = torch.cat([real, imaginary], dim=-2)
        return torch.matmul(inverse_basis(length, real) * scale, spectrum)
    return torch.fft.irfft(torch.complex(real, imaginary), n=length, dim=-2, norm="ortho") * scale


def inverse_basis(length: int, like: Tensor) -> Tensor:
    """Returns the matrix of ``inverse_token_dft``, (length, 2 (length // 2 + 1)); arguments as below."""
    basis = forward_basis(length, like).transpose(0, 1)
    half = length // 2 + 1
    # each frequency between the ends stands for its conjugate partner too
    weight = torch.full([half], 2.0, dtype=like.dtype, device=like.device)
    weight[0] = 1.0
    if length % 2 == 0:
        weight[-1] = 1.0
    return basis * torch.cat([weight, weight])


def forward_basis(length: int, like: Tensor) -> Tensor:
    """Returns the matrix of ``token_dft``: cosines above negative sines, (2 (length // 2 + 1), length).

    Returns:
        The matrix; the same object at every call in eager mode, so it must not be written to.
    """
    if torch.jit.is_scripting():
        return _make_basis(length, like)
    else:
        return _cached_basis(length, like)


def _cached_basis(length: int, like: Tensor) -> Tensor:
    """Looks the matrix up, or makes and keeps it."""
    # A graph must not capture a cached tensor, and the cache must not keep a traced or fake one.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or like.is_meta or type(like) is not Tensor:
        return _make_basis(length, like)
    key = (length, like.dtype, like.device)
    basis = _BASES.get(key)
    if basis is None:
        if len(_BASES) >= _MAX_BASES:
            _BASES.clear()
        with torch.inference_mode(False), torch.no_grad():
            basis = _BASES[key] = _make_basis(length, like)
    return basis


def _make_basis(length: int, like: Tensor) -> Tensor:
    """Computes the matrix from a table of ``length`` angles in float64, so that k n stays an exact integer."""
    device = like.device
    angles = torch.arange(length, dtype=torch.float64, device=device) * (2.0 * math.pi / length)
    scale = length**-0.5
    table = torch.stack([angles.cos() * scale, angles.sin() * -scale]).to(like.dtype)
    k = torch.arange(length // 2 + 1, device=device)
    n = torch.arange(length, device=device)
    index = (k.unsqueeze(1) * n.unsqueeze(0)) % length
    return table[:, index].flatten(0, 1)
