"""The fingerprint tells a model from another one, and knows when it says nothing."""

import hashlib
import json

import pytest
import timm
import torch
from support.exports import perturbed

from timm_mvhybrid.weights.fingerprint import Fingerprint, relative_error, synthetic_image


def test_the_image_is_the_same_everywhere():
    image = synthetic_image(64, 96)
    assert image.shape == (1, 3, 64, 96)
    assert float(image.min()) == -1
    assert float(image.max()) == 1
    digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
    assert digest == "341ce898b03bb1adca74e734436b0f3b159a7940b0f4e5d13c4e114aba65ccc7"
    with torch.device("meta"):
        assert torch.equal(synthetic_image(64, 96), image)


def test_a_model_has_its_own_fingerprint_and_no_others():
    model = perturbed("test_mvhybrid")
    fingerprint = Fingerprint.from_json(Fingerprint.of(model).to_json())
    assert fingerprint == Fingerprint.of(model)
    assert fingerprint.error(model) < 1e-6
    assert fingerprint.error(perturbed("test_mvhybrid", seed=2)) > 0.1


@pytest.mark.parametrize("name", ["blocks.0.mixer.dt_proj.bias", "blocks.3.attn.qkv.weight", "cls_token"])
def test_one_wrong_parameter_shows(name):
    model = perturbed("test_mvhybrid")
    fingerprint = Fingerprint.of(model)
    with torch.no_grad():
        model.get_parameter(name).neg_()
    assert fingerprint.error(model) > fingerprint.tolerance(model)


def test_weights_that_amplify_rounding_are_given_more_of_it(monkeypatch):
    model = perturbed("test_vim_einfft")
    assert Fingerprint.of(model).cpu_tolerance == 1e-4
    monkeypatch.setattr("timm_mvhybrid.weights.fingerprint.CPU_TOLERANCE", 0.0)
    assert 1e-7 < Fingerprint.of(model).cpu_tolerance < 1e-4


def test_features_that_are_no_numbers_are_infinitely_far():
    model = perturbed("test_mvhybrid")
    fingerprint = Fingerprint.of(model)
    with torch.no_grad():
        model.norm.bias[0] = float("nan")
    assert fingerprint.error(model) == float("inf")


def test_mode_and_autocast_of_the_caller_do_not_matter():
    model = perturbed("test_mvhybrid", drop_path_rate=0.5).train()
    model.blocks[1].eval()
    expected = Fingerprint.of(perturbed("test_mvhybrid"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert expected.error(model) < 1e-6
    assert model.training
    assert not model.blocks[1].training
    loss = model(torch.randn(1, 3, 128, 128)).sum()
    loss.backward()


@pytest.mark.parametrize(
    ("options", "applies"),
    [
        ({}, True),
        ({"global_pool": "avg"}, True),
        ({"num_classes": 3}, True),
        ({"dtype": torch.float64}, True),
        ({"in_chans": 1}, False),
        ({"img_size": 96}, False),
        ({"patch_size": 8}, False),
        ({"dtype": torch.bfloat16}, False),
        ({"device": "meta"}, False),
    ],
    ids=str,
)
def test_where_it_applies(options, applies):
    fingerprint = Fingerprint.of(perturbed("test_mvhybrid"))
    assert fingerprint.applies_to(timm.create_model("test_mvhybrid", **options)) is applies


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({"size_px": [1], "patch_px": [1, 1], "features": []})]
)
def test_what_is_no_fingerprint(text):
    with pytest.raises(ValueError, match="not a fingerprint"):
        Fingerprint.from_json(text)


def test_relative_error_is_that_of_the_features():
    first, second = perturbed("test_vit12"), perturbed("test_vit12", seed=2)
    image = synthetic_image(128, 128)
    with torch.no_grad():
        features = [
            torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
            for tokens in (first.forward_features(image), second.forward_features(image))
        ]
    expected = float((features[0] - features[1]).norm() / features[1].norm())
    assert relative_error(first, second) == pytest.approx(expected, rel=1e-5)
