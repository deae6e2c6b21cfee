"""The Triton kernels as users reach them: by request, through operators, mixers and autograd."""

import pytest
import torch
from support.goldens import relative_error
from support.scans import scan_inputs

from timm_mvhybrid import ops
from timm_mvhybrid.layers import HydraMixer, MambaVisionMixer, VimMixer

pytest.importorskip("triton")
ssd_kernels = pytest.importorskip("timm_mvhybrid.ops.ssd.triton")


@pytest.mark.parametrize("reverse", [False, True])
def test_selective_scan(reverse):
    inputs = scan_inputs(9, d_inner=16, d_state=4, groups=2)

    def run(name):
        with ops.use_implementation(name):
            y, last_state = ops.selective_scan(
                **inputs, delta_softplus=True, return_last_state=True, reverse=reverse
            )
            return [
                y,
                last_state,
                *torch.autograd.grad(y.sin().sum() + last_state.sum(), list(inputs.values())),
            ]

    for actual, expected in zip(run("triton"), run("cpu"), strict=True):
        assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("mixer", [MambaVisionMixer, VimMixer, HydraMixer])
def test_mixers(mixer):
    if mixer is HydraMixer and not ssd_kernels.MULTIPLIES_FLOAT64:
        pytest.skip("float64 needs Triton 3.5")
    torch.manual_seed(0)
    options = {"headdim": 16, "d_state": 16} if mixer is HydraMixer else {}
    module = mixer(16, **options, dtype=torch.float64)
    x = torch.randn(1, 9, 16, dtype=torch.float64, requires_grad=True)

    def run(name):
        with ops.use_implementation(name):
            y = module(x)
            return [y, *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])]

    for actual, expected in zip(run("triton"), run("cpu"), strict=True):
        assert relative_error(actual, expected) < 1e-11
