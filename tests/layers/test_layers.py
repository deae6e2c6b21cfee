"""The mixers against goldens of the published modules, gradients included."""

import pickle
from dataclasses import replace

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import load_golden, relative_error
from timm.layers import get_notrace_functions

from timm_mvhybrid.layers import EinFFT, HydraMixer, MambaVisionMixer, SSMBlock, VimMixer

MIXERS = [MambaVisionMixer, VimMixer, HydraMixer]
GOLDENS = [
    (MambaVisionMixer, "b_mvmixer_d32_L17"),
    (MambaVisionMixer, "b_mvmixer_d64_L50"),
    (EinFFT, "c_einfft_d32_L17"),
    (EinFFT, "c_einfft_d64_L50"),
    (HydraMixer, "e_hydra_d32_hd16_L17"),
    (HydraMixer, "e_hydra_d64_hd32_L50"),
    (VimMixer, "f_vimmixer_d32_L17"),
    (VimMixer, "f_vimmixer_d64_L50"),
]


def run_golden(layer, golden, dtype):
    options = {name: golden.config[name] for name in ("d_state", "headdim") if name in golden.config}
    module = layer(golden.config["dim"], **options, dtype=dtype)
    module.load_state_dict({name: value.to(dtype) for name, value in golden.params.items()}, strict=True)
    x = golden.inputs["x"].to(dtype).requires_grad_()
    y = module(x)
    y.backward(golden.cotangents["y"].to(dtype))
    grads = {f"param.{name}": parameter.grad for name, parameter in module.named_parameters()}
    return y.detach(), {"input.x": x.grad, **grads}


@pytest.mark.parametrize(("layer", "name"), GOLDENS)
def test_golden_float64(layer, name):
    golden = load_golden(name)
    y, grads = run_golden(layer, golden, torch.float64)
    assert relative_error(y, golden.outputs["y"]) < 1e-10
    assert grads.keys() == golden.grads.keys()
    for key, expected in golden.grads.items():
        assert relative_error(grads[key], expected) < 1e-10, key


@pytest.mark.parametrize(("layer", "name"), GOLDENS)
def test_golden_float32(layer, name):
    golden = load_golden(name)
    inputs = {"x": golden.inputs["x"], **golden.params}

    def run_all(inputs, dtype=torch.float64):
        params = {key: inputs[key] for key in golden.params}
        y, grads = run_golden(layer, replace(golden, inputs={"x": inputs["x"]}, params=params), dtype)
        return {"y": y, **grads}

    # projections of twice the width, a scan over all tokens, and a projection back
    roundings = golden.inputs["x"].shape[1] + 5 * golden.config["dim"]
    exact = {"y": golden.outputs["y"], **golden.grads}
    assert_accurate(run_all(inputs, torch.float32), run_all, inputs, roundings=roundings, exact=exact)


def complex_einfft(module, x):
    """EinFFT in the complex numbers that it is defined by."""
    batch, length, dim = x.shape
    spectrum = torch.fft.fft2(x.reshape(batch, length, 4, dim // 4), dim=(1, 2), norm="ortho")
    weight_1, weight_2 = (
        torch.complex(w[0], w[1]) for w in (module.complex_weight_1, module.complex_weight_2)
    )
    bias_1, bias_2 = (torch.complex(b[0], b[1]) for b in (module.complex_bias_1, module.complex_bias_2))
    hidden = torch.einsum("bnkd,kde->bnke", spectrum, weight_1) + bias_1
    hidden = torch.complex(hidden.real.relu(), hidden.imag.relu())
    hidden = torch.einsum("bnkd,kde->bnke", hidden, weight_2) + bias_2
    shrink = torch.nn.Softshrink(module.threshold)
    hidden = torch.complex(shrink(hidden.real), shrink(hidden.imag))
    return torch.fft.ifft2(hidden, dim=(1, 2), norm="ortho").real.reshape(batch, length, dim)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 65, 1201])
@pytest.mark.parametrize("dim", [8, 40])
def test_einfft_equals_its_complex_definition(length, dim):
    torch.manual_seed(0)
    module = EinFFT(dim, dtype=torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, length, dim, dtype=torch.float64)
    assert relative_error(module(x), complex_einfft(module, x)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_einfft_computes_in_float32(dtype):
    torch.manual_seed(0)
    module = EinFFT(16)
    x = torch.randn(2, 9, 16).to(dtype)
    expected = module(x.float())
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    assert module.to(dtype)(x).dtype == torch.float32


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("length", [1, 2, 257])
def test_shapes_and_short_sequences(mixer, length):
    module = mixer(64)
    y = module(torch.randn(2, length, 64))
    assert y.shape == (2, length, 64)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scan_parameters_stay_in_float32(mixer, dtype):
    module = mixer(64)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    module(torch.randn(1, 5, 64)).sum().backward()
    cast = module.to(dtype)
    built = mixer(64, dtype=dtype)
    assert mixer.float32_parameters
    for name, parameter in cast.named_parameters():
        kept = name in mixer.float32_parameters
        assert parameter.dtype == (torch.float32 if kept else dtype), name
        assert built.get_parameter(name).dtype == parameter.dtype, name
        assert parameter.grad.dtype == parameter.dtype, name
        if kept:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
    assert cast(torch.randn(1, 5, 64, dtype=dtype)).dtype == dtype
    assert {p.dtype for p in cast.double().parameters()} == {torch.float64}
    assert {p.device.type for p in cast.to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("mixer", [*MIXERS, EinFFT])
def test_pickle_and_reset(mixer):
    torch.manual_seed(0)
    module = mixer(64)
    x = torch.randn(1, 9, 64)
    restored = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(restored(x), module(x), rtol=0, atol=0)
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    for child in module.modules():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()
    module.reset_parameters()
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


@pytest.mark.parametrize("mixer", [*MIXERS, EinFFT])
@pytest.mark.parametrize("length", [2, 70])
def test_output_is_the_same_without_gradients(mixer, length):
    """There some operators reuse the memory of what autograd would have kept."""
    torch.manual_seed(0)
    module, x = mixer(64), torch.randn(3, length, 64)
    before, expected = x.clone(), module(x)
    assert expected.requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(module(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("mixer", [*MIXERS, EinFFT])
def test_fx_records_the_operators_as_single_calls(mixer):
    torch.manual_seed(0)
    module, x = mixer(64), torch.randn(2, 9, 64)
    tracer = torch.fx.Tracer(autowrap_functions=tuple(get_notrace_functions()))
    traced = torch.fx.GraphModule(module, tracer.trace(module))
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            torch.testing.assert_close(traced(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hydra_under_autocast_is_near_float32(dtype):
    torch.manual_seed(0)
    module, x = HydraMixer(64), torch.randn(2, 70, 64)
    exact = module(x)
    with torch.autocast("cpu", dtype):
        y = module(x)
        with torch.no_grad():
            torch.testing.assert_close(module(x), y, rtol=0, atol=0)
    assert y.dtype == dtype
    assert relative_error(y, exact) < 8 * torch.finfo(dtype).eps
    y.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_step_sizes_start_between_their_bounds():
    for bias in (MambaVisionMixer(256).dt_proj.bias, VimMixer(256).dt_proj_b.bias, HydraMixer(256).dt_bias):
        step = torch.nn.functional.softplus(bias.detach())
        assert step.min() >= 0.99e-3
        assert step.max() <= 0.101


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EinFFT(30), "`d_model` is 30"),
        (lambda: MambaVisionMixer(33, expand=1), "must be even"),
        (lambda: HydraMixer(40), "`headdim` is 64; it must divide"),
        (lambda: HydraMixer(64, ngroups=3), "`ngroups` is 3"),
        (lambda: HydraMixer(64, d_conv=4), "`d_conv` is 4"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_keeps_the_dtype_of_its_residual_stream(dtype):
    block = SSMBlock(
        64, MambaVisionMixer(64), EinFFT(64), torch.nn.LayerNorm, init_values=1e-5, drop_path=0.1
    )
    x = torch.randn(2, 9, 64, dtype=dtype)
    assert block.to(dtype).eval()(x).dtype == dtype


def test_block_without_channel_mixer_has_no_second_norm():
    names = dict(SSMBlock(64, MambaVisionMixer(64), None, torch.nn.LayerNorm).named_parameters())
    assert not any(name.startswith(("norm2", "ls2", "channel_mixer")) for name in names)
