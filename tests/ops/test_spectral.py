"""The token transform against torch's FFT, and the depthwise convolution against nn.Conv1d."""

import pytest
import torch
import torch.nn.functional as F

from timm_mvhybrid.ops import inverse_token_dft, token_dft
from timm_mvhybrid.ops.depthwise import depthwise_conv_silu
from timm_mvhybrid.ops.spectral import forward_basis

LENGTHS = [1, 2, 3, 8, 17, 257]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("matrix_length", [0, 1000])
def test_transform_equals_the_fft(length, matrix_length):
    x = torch.randn(2, length, 3, dtype=torch.float64)
    expected = torch.fft.fft(x, dim=1, norm="ortho")[:, : length // 2 + 1]
    real, imaginary = (part / 3 for part in token_dft(x, 3.0, matrix_length))
    torch.testing.assert_close(real, expected.real, rtol=0, atol=1e-12)
    torch.testing.assert_close(imaginary, expected.imag, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("matrix_length", [0, 1000])
def test_inverse_equals_the_inverse_fft(length, matrix_length):
    half = length // 2 + 1
    real, imaginary = torch.randn(2, 2, half, 3, dtype=torch.float64).unbind(0)
    expected = torch.fft.irfft(torch.complex(real, imaginary), n=length, dim=1, norm="ortho")
    actual = inverse_token_dft(real, imaginary, length, 3.0, matrix_length) / 3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_basis_is_made_once_and_not_while_tracing():
    x = torch.randn(1, 12, 1)
    assert forward_basis(12, x) is forward_basis(12, x)
    assert forward_basis(12, x) is not forward_basis(12, x.double())
    assert forward_basis(12, x.to("meta")).is_meta
    assert not forward_basis(12, x).is_meta


def test_basis_made_in_inference_mode_serves_training():
    x = torch.randn(1, 13, 1)
    with torch.inference_mode():
        token_dft(x)
    x.requires_grad_()
    token_dft(x)[0].sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("kernel", "left"), [(4, 1), (4, 3), (7, 3), (1, 0)])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_depthwise_convolution_equals_conv1d(kernel, left, length):
    x = torch.randn(2, length, 6, dtype=torch.float64)
    weight, bias = torch.randn(6, 1, kernel, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    expected = F.silu(F.conv1d(F.pad(x.mT, (left, kernel - 1 - left)), weight, bias, groups=6).mT)
    torch.testing.assert_close(depthwise_conv_silu(x, weight, bias, left), expected, rtol=0, atol=1e-12)
