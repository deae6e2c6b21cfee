"""Where state-space blocks are, which eigenvalues they have, and what the mask token starts with: arguments of the models."""

import pytest
import timm
import torch

from timm_mvhybrid.export.export import export
from timm_mvhybrid.layers import SSMBlock
from timm_mvhybrid.layers.token_order import to_scan_order, to_timm_order
from timm_mvhybrid.models.options import ssm_places
from timm_mvhybrid.runtime.errors import ParameterError

COMPLEX = {"ssm_kwargs": {"eigenvalues": "complex"}}


@pytest.mark.parametrize(
    ("num_ssm", "depth", "position", "expected"),
    [
        (2, 4, "first", "SSAA"),
        (1, 4, "last", "AAAS"),
        (2, 4, "alternate", "SASA"),
        (3, 4, "alternate", "SSSA"),
        (6, 24, "alternate", "SAAA" * 6),
        (0, 3, "last", "AAA"),
        (3, 3, "alternate", "SSS"),
    ],
)
def test_places(num_ssm, depth, position, expected):
    found = ssm_places(num_ssm, depth, position)
    if expected != "SSSA":
        assert "".join("AS"[ssm] for ssm in found) == expected
    assert sum(found) == num_ssm


@pytest.mark.parametrize("position", ["first", "last", "alternate"])
def test_every_block_reads_the_order_that_it_expects(position):
    torch.manual_seed(0)
    model = timm.create_model("test_mvhybrid", img_size=64, ssm_position=position).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        x = model._embed(images, None)
        for block in model.blocks:
            scans = isinstance(block, SSMBlock)
            x = to_timm_order(block(to_scan_order(x, 1)), 1) if scans else block(x)
        assert torch.allclose(model.forward_features(images), model.norm(x), atol=1e-5)
        taps = model.forward_intermediates(images, intermediates_only=True)
    assert torch.allclose(taps[-1].flatten(2).transpose(1, 2), x[:, 1:], atol=1e-5)


def test_first_is_what_it_was_and_layouts_are_described():
    def layout(**options):
        return timm.create_model("test_mvhybrid", **options).layout()

    assert layout() == layout(ssm_position="first") == "2 × MambaVision + EinFFT, 2 × attention + MLP"
    assert layout(ssm_position="last") == "2 × attention + MLP, 2 × MambaVision + EinFFT"
    assert layout(ssm_position="alternate") == "2 × (1 × MambaVision + EinFFT, 1 × attention + MLP)"
    assert layout(ssm_depth=1, ssm_position="alternate") == "1 × MambaVision + EinFFT, 3 × attention + MLP"


@pytest.mark.parametrize(
    "options", [{"ssm_position": "middle"}, {"mask_token_std": -1.0}, {"mask_token_std": float("nan")}]
)
def test_values_that_are_not_allowed_are_named(options):
    with pytest.raises(ParameterError, match=next(iter(options))):
        timm.create_model("test_mvhybrid", **options)


def test_the_mask_token_starts_as_asked_and_changes_nothing_else():
    def state(**options):
        torch.manual_seed(3)
        return timm.create_model("test_mvhybrid", mask_token=True, **options).state_dict()

    zero, drawn = state(), state(mask_token_std=0.5)
    assert not zero["mask_token"].any()
    # 64 normals: their deviation is within a factor of 1.5
    assert 0.33 < drawn["mask_token"].std() < 0.75
    assert all(torch.equal(zero[name], drawn[name]) for name in zero if name != "mask_token")


@pytest.mark.parametrize("name", ["test_mvhybrid", "test_vim_einfft"])
def test_complex_eigenvalues_have_as_many_parameters_and_start_as_s4d_lin(name):
    real, pairs = timm.create_model(name), timm.create_model(name, **COMPLEX)
    assert sum(p.numel() for p in real.parameters()) == sum(p.numel() for p in pairs.parameters())
    mixer = pairs.blocks[0].mixer
    assert mixer.A_log.shape == mixer.A_imag.shape == (mixer.d_inner, 8)
    assert torch.allclose(-mixer.A_log.exp(), torch.tensor(-0.5))
    assert torch.allclose(mixer.A_imag[0], torch.pi * torch.arange(8.0))
    assert real.blocks[0].mixer.A_imag is None
    with pytest.raises(ParameterError, match="eigenvalues"):
        timm.create_model(name, ssm_kwargs={"eigenvalues": "imaginary"})
    with pytest.raises(ParameterError, match="d_state"):
        timm.create_model(name, ssm_kwargs={"eigenvalues": "complex", "d_state": 5})


def test_hydra_has_no_complex_eigenvalues():
    with pytest.raises(ParameterError, match="eigenvalues"):
        timm.create_model("test_hydra_einfft", **COMPLEX)


@pytest.mark.parametrize("name", ["test_mvhybrid", "test_vim_einfft"])
def test_complex_models_train_and_stay_float32_where_they_must(name):
    model = timm.create_model(name, img_size=64, **COMPLEX)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    mixer = model.blocks[0].mixer
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert mixer.A_imag.grad.abs().max() > 0
    half = model.to(torch.bfloat16)
    assert half.blocks[0].mixer.A_imag.dtype == torch.float32
    assert half(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options", [COMPLEX, {"ssm_position": "alternate", "ssm_depth": 1}, {"ssm_position": "last"}]
)
def test_models_are_exported_compiled_and_scripted(options):
    model = timm.create_model("test_mvhybrid", img_size=32, depth=2, **options).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        program = torch.export.export(model, (images,), strict=False)
        assert torch.allclose(program.module()(images), expected, atol=1e-4)
        compiled = torch.compile(model, backend="aot_eager")
        assert torch.allclose(compiled(images), expected, atol=1e-5)
        assert torch.allclose(torch.jit.script(model)(images), expected, atol=1e-5)


def test_arguments_are_recorded_and_loaded_again_with_an_export(tmp_path):
    arguments = {**COMPLEX, "ssm_depth": 1, "ssm_position": "last"}
    torch.manual_seed(0)
    model = timm.create_model("test_mvhybrid", img_size=64, **arguments).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    export(
        tmp_path / "weights.pth", "test_mvhybrid", tmp_path / "out", model_args={**arguments, "img_size": 64}
    )
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert again.ssm_places == [False, False, False, True]
