"""Gradients by kind, what blocks do, and why a mask token of 0 makes training unstable."""

import pytest
import timm
import torch
from torch import nn

from timm_mvhybrid.analysis import mask_gradients
from timm_mvhybrid.ssl.by_kind import KINDS, block_measures, gradient_norms, kind_of, starts_at_zero

MLP = {"channel_mixer": "mlp", "mask_token": True, "img_size": 64}


def build(name="test_mvhybrid", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **{**MLP, **options}).eval()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("backbone.mask_token", "mask_token"),
        ("backbone.blocks.0.mixer.in_proj.weight", "in_proj"),
        ("backbone.blocks.0.mixer.out_proj.weight", "out_proj"),
        ("blocks.0.mixer.A_b_log", "A_log"),
        ("blocks.0.mixer.A_imag", "A_log"),
        ("blocks.0.channel_mixer.fc1.weight", "channel_mixer"),
        ("blocks.3.attn.qkv.weight", "attn"),
        ("blocks.3.mlp.fc1.bias", "mlp"),
        ("dino_head.last_layer.weight", "heads"),
        ("blocks.0.norm1.weight", "other"),
    ],
)
def test_kinds_are_told_from_names(name, kind):
    assert kind_of(name) == kind
    assert kind in KINDS


def test_norms_are_those_of_all_parameters_of_a_kind():
    model = build()
    model(torch.randn(1, 3, 64, 64)).square().sum().backward()
    norms = gradient_norms(model)
    assert "mask_token" not in norms
    squares = sum(
        float(parameter.grad.double().square().sum())
        for parameter in model.parameters()
        if parameter.grad is not None
    )
    assert sum(float(norm) ** 2 for norm in norms.values()) == pytest.approx(squares, rel=1e-5)
    projections = [block.mixer.in_proj.weight.grad.double() for block in model.blocks[:2]]
    assert float(norms["in_proj"]) == pytest.approx(float(torch.stack(projections).norm()), rel=1e-5)


def test_blocks_are_measured_and_hooks_are_gone():
    model = build(channel_mixer="einfft")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = model.forward_intermediates(images, return_prefix_tokens=True, intermediates_only=True)
    found = block_measures(model, lambda: model.forward_features(images))
    maps, prefix = outputs[1]
    tokens = torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)
    assert found["block_rms/01"] == pytest.approx(float(tokens.square().mean().sqrt()), rel=1e-5)
    assert {"mixer_gain/00", "channel_gain/00", "mixer_gain/03", "channel_gain/03"} <= found.keys()
    assert 0 < found["delta/min"] <= found["delta/max"]
    assert found["A_log/min"] == 0.0
    assert found["A_log/max"] == pytest.approx(2.7725887)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["test_vim_einfft", "test_hydra_hybrid", "test_vit12"])
def test_blocks_of_other_models_are_measured(name):
    model = timm.create_model(name, img_size=64, depth=2).eval()
    found = block_measures(model, lambda: model.forward_features(torch.randn(1, 3, 64, 64)))
    assert found["block_rms/01"] > 0
    assert ("delta/max" in found) == (name != "test_vit12")


def test_a_masked_token_of_zero_stays_exactly_zero_and_one_that_is_not_does_not():
    """The mechanism: nothing is added to it, so that each LayerNorm meets it at 0, where its slope is 1/√eps."""
    images, mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 16, dtype=torch.bool)
    mask[:, :8] = True

    def hidden_after(block, **options):
        model = build(**options)
        found = []
        handle = model.blocks[block].register_forward_hook(lambda _m, _i, out: found.append(out))
        with torch.no_grad():
            model.forward_features(images, mask)
        handle.remove()
        # the first token in scan order is the first patch, which is hidden, as are its neighbours
        return found[0][0, 0].abs().max()

    for name in ("test_mvhybrid", "test_hydra_hybrid"):
        assert hidden_after(1, name=name) == 0.0
        assert hidden_after(1, name=name, channel_mixer="none") == 0.0
        assert hidden_after(1, name=name, mask_token_std=0.02) > 0.0
        assert hidden_after(1, name=name, pos_embed="learn") > 0.0
        assert hidden_after(0, name=name, channel_mixer="einfft") > 0.0


def test_its_gradient_grows_with_every_block_and_each_cure_ends_that():
    images = torch.randn(2, 3, 64, 64)

    def gradient(depth, **options):
        model = build(depth=depth, ssm_depth="all", **options)
        return mask_gradients(model, images)["mask_token"]

    zero = [gradient(depth) for depth in (2, 6)]
    # four more blocks, each of which multiplies by up to 316 and by what its MLP makes of it
    assert zero[1] > 100 * zero[0]
    for cure in ({"mask_token_std": 0.02}, {"pos_embed": "learn"}, {"channel_mixer": "einfft"}):
        cured = [gradient(depth, **cure) for depth in (2, 6)]
        assert cured[1] < 20 * cured[0], cure
        assert cured[1] < 1e-2 * zero[1], cure


def test_the_state_that_is_warned_of():
    assert starts_at_zero(build())
    assert starts_at_zero(build(channel_mixer="none"))
    for cure in (
        {"mask_token_std": 0.02},
        {"pos_embed": "learn"},
        {"channel_mixer": "einfft"},
        {"mask_token": False},
        {"ssm_position": "last"},
    ):
        assert not starts_at_zero(build(**cure)), cure
    assert not starts_at_zero(nn.Linear(2, 2))
    assert not starts_at_zero(timm.create_model("test_vit12", mask_token=True))
