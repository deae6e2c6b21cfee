import pytest
import timm
import torch
from support.bounds import assert_near

from timm_mvhybrid.embed.pooling import check_pooling, own_pooling, pooled_features
from timm_mvhybrid.evaluate import EvaluationError
from timm_mvhybrid.runtime.errors import ParameterError


def build(name: str, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["test_mvhybrid", "test_vit"])
def test_token_models(images, name):
    model = build(name)
    with torch.inference_mode():
        tokens = model.forward_features(images)
        prefix = model.num_prefix_tokens
        assert prefix >= 1
        expected = {
            "token": tokens[:, 0],
            "avg": tokens[:, prefix:].mean(1),
            "max": tokens[:, prefix:].max(1).values,
            "token+avg": torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], 1),
            "model": model(images),
        }
        for pooling, vectors in expected.items():
            check_pooling(model, pooling)
            assert_near(pooled_features(model, images, pooling), vectors, roundings=2048)


SMALL_SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "img_size": 56}


@pytest.mark.parametrize(
    ("name", "options", "dims"),
    [
        ("test_resnet", {}, (2, 3)),
        ("test_convnext", {}, (2, 3)),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, (1, 2)),
    ],
)
def test_maps_are_pooled_over_space(name, options, dims):
    model = build(name, **options)
    images = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        maps = model.forward_features(images)
        assert_near(pooled_features(model, images, "avg"), maps.mean(dims), roundings=2048)
        assert_near(pooled_features(model, images, "max"), maps.amax(dims), roundings=2048)
        assert_near(pooled_features(model, images, "model"), model(images), roundings=2048)


@pytest.mark.parametrize("pooling", ["token", "token+avg"])
def test_token_needs_a_class_token(pooling):
    with pytest.raises(
        EvaluationError, match=r"needs a class token, which this model does not have; use avg"
    ):
        check_pooling(build("test_resnet"), pooling)


def test_unknown_pooling():
    with pytest.raises(ParameterError, match=r"`pool` is 'median'; choose from model, token, avg, max"):
        check_pooling(build("test_vit"), "median")


def test_model_that_yields_no_vectors(images):
    model = timm.create_model("test_vit", num_classes=0, global_pool="")
    with pytest.raises(EvaluationError, match=r"shape \(2, 17, 64\); choose `pool='avg'`"):
        pooled_features(model, images, "model")


@pytest.mark.parametrize(
    ("name", "expected"), [("test_mvhybrid", "token"), ("test_resnet", "avg"), ("test_convnext", "avg")]
)
def test_own_pooling_is_named(name, expected):
    assert own_pooling(build(name)) == expected
