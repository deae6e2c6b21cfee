"""Gains of gratings: the same as one derivative after the other, and as small differences."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.func import jvp

from timm_mvhybrid.analysis import grating, jacobian, jacobian_gain
from timm_mvhybrid.runtime.errors import ParameterError

SIZE = (64, 64)


def waves():
    return torch.stack([grating(f, o, SIZE) for f in (1, 2) for o in ("rows", "columns", "diagonal")])


@pytest.mark.parametrize("name", ["test_mvhybrid", "test_vim_einfft", "test_hydra_hybrid", "test_vit12"])
def test_batched_gains_are_those_of_one_derivative_a_grating(name):
    model, images = timm.create_model(name, img_size=64, depth=2).eval(), torch.randn(2, 3, *SIZE)
    found = jacobian_gain(model, images, waves()[:3])
    assert found.shape == (2, 3)
    for row, image in zip(found, images, strict=True):
        for gain, wave in zip(row[1:], waves()[1:3], strict=True):
            with jacobian.forward_mode_attention(), torch.no_grad():
                moved = jvp(model, (image[None],), (wave[None],))[1]
            assert gain == pytest.approx(float(moved.norm() / wave.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_mvhybrid", {}),
        ("test_mvhybrid", {"ssm_kwargs": {"eigenvalues": "complex"}, "channel_mixer": "mlp"}),
        ("test_vim_einfft", {"init_values": 0.5, "reg_tokens": 2}),
        ("test_hydra_hybrid", {"global_pool": "avg", "ssm_position": "alternate"}),
        ("test_vit12", {"qk_norm": True, "pos_embed": "learn"}),
        ("test_vit", {"img_size": 64, "act_layer": "relu"}),
        ("test_convnext", {}),
    ],
)
def test_in_float64_gains_are_those_of_torch_func(name, options, monkeypatch):
    depth = {} if name in ("test_vit", "test_convnext") else {"img_size": 64, "depth": 2}
    model = timm.create_model(name, num_classes=0, **depth, **options).eval().double()
    images = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    found = jacobian_gain(model, images, waves())
    # no model counts as a vision transformer
    monkeypatch.setattr(jacobian, "VisionTransformer", ())
    np.testing.assert_allclose(found, jacobian_gain(model, images, waves()), rtol=1e-10)


def test_a_vision_transformer_leaves_nothing_to_torch_func(monkeypatch):
    model, image = timm.create_model("test_mvhybrid", img_size=64, depth=2), torch.randn(1, 3, *SIZE)
    monkeypatch.setattr(jacobian, "_composed", lambda *_: pytest.fail("torch.func took the model"))
    assert (jacobian_gain(model, image, waves()) > 0).all()


def test_layers_that_change_tensors_in_place_are_left_to_torch_func():
    model, images = timm.create_model("test_vit12", img_size=64, depth=2).double(), torch.randn(2, 3, *SIZE)
    expected = jacobian_gain(model, images, waves())
    handle = model.blocks[0].register_forward_hook(lambda _module, _inputs, out: out.mul_(2.0))
    changed = jacobian_gain(model, images, waves())
    handle.remove()
    model.blocks[0].register_forward_hook(lambda _module, _inputs, out: 2.0 * out)
    assert np.abs(changed / expected - 1).max() > 1e-3
    np.testing.assert_allclose(changed, jacobian_gain(model, images, waves()), rtol=1e-10)


def test_gains_are_those_of_small_differences():
    # attention and MLP are smooth; EinFFT's ReLU has corners that a difference may cross
    model = timm.create_model("test_vit12", img_size=64, depth=2).eval().double()
    image = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    found = jacobian_gain(model, image, waves())
    with torch.no_grad():
        for gain, wave in zip(found[0], waves().double(), strict=True):
            step = 1e-4 * wave
            moved = (model(image + step) - model(image - step)).norm() / (2 * step.norm())
            assert gain == pytest.approx(float(moved), rel=1e-6)


class Averages(nn.Module):
    """Rows of an image; a grating along the columns is the same in all of a row, and one along the rows averages out."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x.mean(dim=(1, 3))


def test_rows_and_columns_are_not_mistaken_for_each_other():
    found = jacobian_gain(
        Averages(), torch.randn(1, 3, *SIZE), torch.stack([grating(2, o, SIZE) for o in ("rows", "columns")])
    )
    assert found[0, 0] == pytest.approx(0.0, abs=1e-6)
    # 64 rows of 3 × 64 numbers, each row averaged
    assert found[0, 1] == pytest.approx(1 / np.sqrt(3 * 64), rel=1e-5)


@pytest.mark.parametrize(
    ("limit", "model"), [("WORK_ELEMENTS", "test_mvhybrid"), ("COMPOSED_ELEMENTS", "test_convnext")]
)
def test_gratings_in_parts_give_the_same(limit, model, monkeypatch):
    options = {"depth": 2, "img_size": 64} if model == "test_mvhybrid" else {"num_classes": 0}
    model = timm.create_model(model, **options).eval().double()
    image = torch.randn(1, 3, *SIZE)
    whole = jacobian_gain(model, image, waves())
    per_grating = 16 * 16 * getattr(model, "embed_dim", 512)
    for gratings in (1, 4):
        monkeypatch.setattr(jacobian, limit, gratings * per_grating)
        np.testing.assert_allclose(jacobian_gain(model, image, waves()), whole, rtol=1e-10)


def test_the_model_is_left_in_its_mode():
    model = timm.create_model("test_vit12", img_size=64, depth=1, drop_path_rate=0.5).train()
    jacobian_gain(model, torch.randn(1, 3, *SIZE), waves()[:1])
    assert model.training
    assert model.blocks[0].training


def test_gratings_vary_where_they_say():
    rows, columns = grating(3, "rows", (32, 48)), grating(3, "columns", (32, 48))
    assert rows.shape == (3, 32, 48)
    assert torch.equal(rows[:, :1].expand_as(rows), rows)
    assert torch.equal(columns[:, :, :1].expand_as(columns), columns)
    assert torch.fft.rfft(rows[0, 0]).abs().argmax() == 3
    assert torch.fft.rfft(columns[0, :, 0]).abs().argmax() == 3


@pytest.mark.parametrize(
    ("gratings", "message"), [(torch.ones(1, 3, 32, 32), "same size"), (torch.zeros(1, 3, *SIZE), "index 0")]
)
def test_gratings_that_do_not_fit_are_refused(gratings, message):
    with pytest.raises(ParameterError, match=message):
        jacobian_gain(nn.Flatten(), torch.ones(1, 3, *SIZE), gratings)


def test_orientations_that_are_none_are_refused():
    with pytest.raises(ParameterError, match="orientation"):
        grating(1, "both", SIZE)
