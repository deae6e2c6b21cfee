"""The adapters of mamba-ssm and causal-conv1d, on stand-ins that check what the packages' kernels demand.

The stand-ins compute by the plain loop. What they cannot show, the kernels' own numbers, a CUDA machine shows with
``python -m benchmarks gpu``.
"""

import importlib
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from support.goldens import relative_error
from support.scans import scan_inputs

from timm_mvhybrid.ops import causal_conv, implementation, selective_scan_reference, ssd_scan_reference
from timm_mvhybrid.ops.selective_scan.inputs import Inputs as SelectiveScanInputs
from timm_mvhybrid.ops.ssd.inputs import Inputs as SSDInputs


def check_kernel_arguments(u, delta, A, B, C, D, z, delta_bias):
    """Asserts what selective_scan_cuda of mamba_ssm 2.3 checks before a launch."""
    batch, _, length = u.shape
    assert u.dtype in (torch.float16, torch.bfloat16, torch.float32)
    assert {x.dtype for x in (u, delta, B, C)} == {u.dtype}
    assert {x.dtype for x in (A, D, delta_bias) if x is not None} == {torch.float32}
    assert B.shape == C.shape == (batch, B.shape[1], A.shape[1], length)
    assert all(x.stride(-1) == 1 for x in (u, delta, B, C))
    if z is not None:
        assert z.dtype == u.dtype
        assert z.shape == u.shape


def stand_in_selective_scan():
    module = types.ModuleType("selective_scan_cuda")

    def fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        check_kernel_arguments(u, delta, A, B, C, D, z, delta_bias)
        y, state = selective_scan_reference(
            u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True
        )
        pieces = torch.full((*state.shape[:2], 1, 2 * state.shape[2]), torch.nan)
        pieces[:, :, 0, 1::2] = state
        return (y, pieces) if z is None else (y, pieces, y * F.silu(z))

    def bwd(u, delta, A, B, C, D, z, delta_bias, dout, pieces, out, dz, delta_softplus, recompute):
        check_kernel_arguments(u, delta, A, B, C, D, z, delta_bias)
        assert dout.dtype == u.dtype
        assert dout.stride(-1) == 1
        assert (out is None) == (z is None)
        assert dz is None
        assert not recompute
        tensors = (u, delta, A, B, C, D, z, delta_bias)
        leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
        with torch.enable_grad():
            y = selective_scan_reference(*leaves, delta_softplus)
            present = [x for x in leaves if x is not None]
            grads = iter(torch.autograd.grad(y, present, dout))
        grads = [None if x is None else next(grads) for x in leaves]
        gate = [] if z is None else [grads[6]]
        return (*grads[:6], grads[7], *gate)

    module.fwd, module.bwd = fwd, bwd
    return module


def stand_in_ssd():
    module = types.ModuleType("mamba_ssm.ops.triton.ssd_combined")

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, dt, A, B, C, D, dt_bias, dt_softplus):
            ctx.save_for_backward(x, dt, A, B, C, D, dt_bias)
            ctx.dt_softplus = dt_softplus
            return ssd_scan_reference(x, dt, A, B, C, D, dt_bias, dt_softplus, return_last_state=True)

        @staticmethod
        def backward(ctx, grad_y, grad_state):
            leaves = [None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
            with torch.enable_grad():
                outputs = ssd_scan_reference(*leaves, ctx.dt_softplus, return_last_state=True)
                present = [x for x in leaves if x is not None]
                grads = iter(torch.autograd.grad(outputs, present, (grad_y, grad_state)))
            return (*(None if x is None else next(grads) for x in leaves), None)

    def mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=None, dt_bias=None, dt_softplus=False, return_final_states=False
    ):
        assert chunk_size >= 16
        assert B.dtype == C.dtype == x.dtype
        assert return_final_states
        assert {v.dtype for v in (A, D, dt_bias) if v is not None} == {torch.float32}
        return Scan.apply(x, dt, A, B, C, D, dt_bias, dt_softplus)

    module.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    return module


@pytest.fixture
def adapter(monkeypatch):
    """Loads an adapter against the stand-ins, and forgets it afterwards."""
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.triton.ssd_combined", stand_in_ssd())
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", stand_in_selective_scan())

    def load(operation):
        name = f"timm_mvhybrid.ops.{implementation.OPERATIONS[operation]}.mamba_ssm"
        sys.modules.pop(name, None)
        loaded.append(name)
        return importlib.import_module(name)

    loaded = []
    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def token_major(inputs):
    u, delta, A, B, C, D, z, bias = (None if x is None else x.detach() for x in inputs.values())
    B, C = (x.permute(0, 3, 1, 2) for x in (B, C))
    return u.mT, delta.mT, A, B, C, D, None if z is None else z.mT, bias


def assert_same(actual, expected, bound=1e-5):
    assert len(actual) == len(expected)
    for ours, plain in zip(actual, expected, strict=True):
        assert ours.dtype == plain.dtype
        assert ours.numel() == plain.numel() == 0 or relative_error(ours, plain) < bound


@pytest.mark.parametrize("options", ["Dzb", "", "Db"])
@pytest.mark.parametrize("with_last_state", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_selective_scan_equals_the_plain_implementation(adapter, options, with_last_state, reverse):
    drawn = token_major(scan_inputs(17, groups=2, options=options, dtype=torch.float32))
    inputs = SelectiveScanInputs(*drawn, True, reverse)
    ours, plain = adapter("selective_scan"), implementation.load("selective_scan", "cpu")
    y, last_state, states = ours.forward(inputs, save_states=True)
    expected = plain.forward(inputs, save_states=True)
    assert_same((y, last_state), expected[:2])
    assert states.shape == (ours.num_chunks(17), *last_state.shape)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    grad_state = torch.ones_like(last_state) if with_last_state else None
    grads = ours.backward(grad_y, grad_state, states, inputs)
    assert_same(grads, plain.backward(grad_y, grad_state, expected[2], inputs))


def test_selective_scan_takes_half_inputs_with_float32_parameters(adapter):
    u, delta, A, B, C, D, z, bias = token_major(scan_inputs(5, groups=1, dtype=torch.float32))
    mixed = (u.bfloat16(), delta, A, B.bfloat16(), C.bfloat16(), D, z.bfloat16(), bias.bfloat16())
    inputs = SelectiveScanInputs(*mixed, True)
    ours = adapter("selective_scan")
    y, _, states = ours.forward(inputs, save_states=True)
    assert y.dtype == torch.bfloat16
    grads = ours.backward(y, None, states, inputs)
    assert [grad.dtype for grad in grads] == [x.dtype for x in mixed]
    assert [grad.shape for grad in grads] == [x.shape for x in mixed]


def test_selective_scan_names_a_state_that_is_too_large(adapter):
    arguments = token_major(scan_inputs(2, groups=1, d_state=257, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"`d_state` is 257; mamba-ssm's kernels take at most 256"):
        adapter("selective_scan").forward(SelectiveScanInputs(*arguments, True), False)


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("with_last_state", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_ssd_scan_equals_the_plain_implementation(adapter, optional, with_last_state, reverse):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x, dt, A = draw(2, 17, 4, 3), draw(2, 17, 4), -draw(4).exp()
    B, C = draw(2, 17, 2, 5), draw(2, 17, 2, 5)
    D, bias = (draw(4), draw(4)) if optional else (None, None)
    inputs = SSDInputs(x, dt, A, B, C, D, bias, True, reverse)
    ours, plain = adapter("ssd_scan"), implementation.load("ssd_scan", "cpu")
    y, last_state, states = ours.forward(inputs, save_states=True)
    expected = plain.forward(inputs, save_states=True)
    assert_same((y, last_state), expected[:2])
    assert states.shape == (ours.num_chunks(17), *last_state.shape)
    grad_state = torch.ones_like(last_state) if with_last_state else None
    grad_y = draw(*y.shape)
    grads = ours.backward(grad_y, grad_state, states, inputs)
    assert_same(grads, plain.backward(grad_y, grad_state, expected[2], inputs))


def test_causal_convolution_of_the_package_equals_ours(monkeypatch):
    package = types.ModuleType("causal_conv1d")

    def causal_conv1d_fn(x, weight, bias=None, activation=None):
        assert x.stride(1) == 1
        assert weight.ndim == 2
        assert activation == "silu"
        length, taps = x.shape[-1], weight.shape[-1]
        return F.silu(
            F.conv1d(x, weight.unsqueeze(1), bias, padding=taps - 1, groups=x.shape[1])[..., :length]
        )

    package.causal_conv1d_fn = causal_conv1d_fn
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 9, 16), (16, 1, 4), (16,))
    )
    # two halves of one projection, as in the mixer
    x = torch.cat([x, x], dim=-1)[..., 16:]
    expected = causal_conv.causal_conv_silu(x, weight, bias)
    backwards = causal_conv.causal_conv_silu(x, weight, bias, reverse=True)
    assert relative_error(causal_conv.causal_conv_silu(x.flip(1), weight, bias).flip(1), backwards) < 1e-12
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    monkeypatch.setattr(causal_conv, "why_not_causal_conv1d", lambda device, dtype: None)
    calls = []
    conv = causal_conv._package_conv
    monkeypatch.setattr(causal_conv, "_package_conv", lambda *args: calls.append(1) or conv(*args))
    assert relative_error(causal_conv.causal_conv_silu(x, weight, bias), expected) < 1e-12
    assert relative_error(causal_conv.causal_conv_silu(x, weight, bias, reverse=True), backwards) < 1e-12
    assert calls == [1, 1]
    # five taps are more than the package takes
    longer = F.pad(weight, [1, 0])
    assert relative_error(causal_conv.causal_conv_silu(x, longer, bias), expected) < 1e-12
    assert calls == [1, 1]
