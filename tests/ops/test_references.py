"""The specification of each operator in src, against what runs, values and gradients in float64."""

import pytest
import torch
from support.goldens import relative_error

from timm_mvhybrid.ops.einfft import einfft, einfft_portable, einfft_reference
from timm_mvhybrid.ops.gated_norm import gated_norm, gated_norm_portable, gated_norm_reference
from timm_mvhybrid.ops.quasiseparable import (
    quasiseparable,
    quasiseparable_portable,
    quasiseparable_reference,
)

LENGTHS = [1, 2, 17, 63, 197, 257]


def draw(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def run(function, inputs, *options):
    y = function(*inputs, *options)
    cotangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]


def assert_equal(function, reference, inputs, *options):
    for actual, expected in zip(
        run(function, inputs, *options), run(reference, inputs, *options), strict=True
    ):
        assert relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("function", [einfft, einfft_portable])
def test_einfft(function, length):
    maps, biases = (2, 4, 3, 3), (2, 4, 3)
    inputs = draw((2, length, 12), maps, biases, maps, biases)
    assert_equal(function, einfft_reference, inputs, 0.3)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("function", [gated_norm, gated_norm_portable])
def test_gated_norm(function, length):
    assert_equal(function, gated_norm_reference, draw((2, length, 12), (2, length, 12), (12,)), 1e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("function", [quasiseparable, quasiseparable_portable])
def test_quasiseparable(function, length):
    matrix = (2, length, 2, 2, 5)
    inputs = draw((2, length, 4, 3), (2, length, 2, 4), (4,), matrix, matrix, (4,), (2, length, 4))
    inputs[2] = (-inputs[2].detach().exp()).requires_grad_()
    assert_equal(function, quasiseparable_reference, inputs)
