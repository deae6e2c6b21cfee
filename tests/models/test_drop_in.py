"""What pathology pipelines take for granted of a timm vision transformer."""

import copy
import inspect
import pickle
import typing

import pytest
import timm
import torch
from support.bounds import assert_near
from timm.models import VisionTransformer
from timm.models.vision_transformer import Attention
from torch import nn

import timm_mvhybrid
from timm_mvhybrid import create_model
from timm_mvhybrid.models import MODEL_NAMES, TEST_MODEL_NAMES

HYBRIDS = ("test_mvhybrid", "test_hydra_hybrid", "test_vit12")


def make(name, **options):
    """A model whose every part shows in its output."""
    torch.manual_seed(0)
    model = create_model(name, **options).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_" not in parameter_name:
                parameter.mul_(2)
            if "token" in parameter_name:
                parameter.normal_()
    return model


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_create_model_has_the_signature_that_configuration_files_are_checked_against():
    assert timm_mvhybrid.create_model is create_model
    signature = inspect.signature(create_model, eval_str=True)
    assert list(signature.parameters) == ["model_name", "kwargs"]
    assert signature.parameters["model_name"].annotation is str
    assert signature.parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    assert typing.get_type_hints(create_model)["return"] is nn.Module


def test_create_model_knows_the_names_of_timm_too_and_refuses_others():
    assert type(create_model("test_vit", num_classes=0)) is VisionTransformer
    with pytest.raises(RuntimeError, match="mvhybrid_tiny"):
        create_model("mvhybrid_tiny")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_bare_model_is_a_vision_transformer_of_384_features(name):
    model = create_model(name).eval()
    assert isinstance(model, VisionTransformer)
    assert model.embed_dim == model.num_features == model.head_hidden_size == 384
    assert model.num_classes == 0
    assert model.num_prefix_tokens == 1
    assert model.patch_embed.img_size == (256, 256)
    assert model.patch_embed.patch_size == (16, 16)
    assert model.patch_embed.grid_size == (16, 16)
    with torch.inference_mode():
        assert model(images(1, 3, 256, 256)).shape == (1, 384)
        assert model(images(1, 3, 224, 224)).shape == (1, 384)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_configuration_says_how_images_are_prepared(name):
    config = timm.data.resolve_model_data_config(create_model(name, device="meta"))
    assert config["input_size"] == (3, 256, 256)
    assert config["mean"] == timm_mvhybrid.models.HE_MEAN
    assert config["std"] == timm_mvhybrid.models.HE_STD
    assert config["crop_pct"] == 1.0
    assert config["interpolation"] == "bicubic"


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_arguments_that_pipelines_send_to_every_timm_model_are_accepted(name):
    x = images(2, 3, 128, 128)
    plain = make(name, features_only=False, out_indices=None, pretrained_cfg={}, pretrained=False)
    assert_near(plain(x), make(name)(x), roundings=2048)
    for options, shape in (
        ({"img_size": 96, "patch_size": 16}, (2, plain.embed_dim)),
        ({"init_values": 1e-5, "num_classes": 0}, (2, plain.embed_dim)),
        ({"init_values": 1.0, "dynamic_img_size": True, "no_embed_class": True}, (2, plain.embed_dim)),
        ({"global_pool": "token"}, (2, plain.embed_dim)),
        ({"global_pool": "avg"}, (2, plain.embed_dim)),
        ({"global_pool": ""}, (2, 65, plain.embed_dim)),
        ({"num_classes": 5}, (2, 5)),
    ):
        size = options.get("img_size", 128)
        assert make(name, **options)(images(2, 3, size, size)).shape == shape


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_cast_to_half_takes_half_images_and_keeps_every_part_of_its_weights(name, dtype):
    model = make(name)
    assert not any(parameter.is_complex() for parameter in model.parameters())
    half = copy.deepcopy(model).to(dtype)
    x = images(2, 3, 128, 128)
    with torch.inference_mode():
        output, exact = half(x.to(dtype)), model(x)
    assert output.dtype == dtype
    similarity = torch.nn.functional.cosine_similarity(output.float(), exact)
    assert similarity.min() > (0.9999 if dtype is torch.float16 else 0.999)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_under_autocast_can_be_stored_by_numpy(name, dtype):
    model = make(name)
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        output = model(images(2, 3, 128, 128))
    assert output.dtype == torch.float32
    assert output.numpy().shape == (2, model.num_features)


def attention_maps(model, x, first_block):
    """Attention of each block behind `first_block`, (batch, heads, tokens, tokens), from hooks on its module."""
    maps = []

    def attend(module, inputs):
        assert isinstance(module, Attention)
        batch, length, _ = inputs[0].shape
        qkv = module.qkv(inputs[0]).reshape(batch, length, 3, module.num_heads, module.head_dim)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)
        maps.append((module.q_norm(q) * module.scale @ module.k_norm(k).transpose(-2, -1)).softmax(-1))

    handles = [block.attn.register_forward_pre_hook(attend) for block in model.blocks[first_block:]]
    with torch.inference_mode():
        tokens = model.forward_features(x)
    for handle in handles:
        handle.remove()
    return maps, tokens


@pytest.mark.parametrize("name", HYBRIDS)
def test_attention_maps_are_those_of_timms_own_blocks_in_timms_order(name):
    model, x = make(name), images(2, 3, 64, 96)
    first = model.ssm_depth
    maps, tokens = attention_maps(model, x, first)
    before = (
        []
        if first == 0
        else model.forward_intermediates(
            x, indices=[first - 1], return_prefix_tokens=True, intermediates_only=True, output_fmt="NLC"
        )
    )

    # timm's model of the attention half alone, fed with what the state-space half puts out
    rebuilt = VisionTransformer(
        img_size=(64, 96),
        patch_size=16,
        embed_dim=model.embed_dim,
        depth=len(model.blocks) - first,
        num_heads=model.blocks[-1].attn.num_heads,
        init_values=1.0 if hasattr(model.blocks[-1].ls1, "gamma") else None,
        num_classes=0,
        norm_layer=type(model.norm),
    ).eval()
    rebuilt.blocks.load_state_dict(
        {
            f"{int(key.split('.')[0]) - first}.{key.split('.', 1)[1]}": value
            for key, value in model.blocks.state_dict().items()
            if int(key.split(".")[0]) >= first
        }
    )
    for ours, theirs in zip(model.blocks[first:], rebuilt.blocks, strict=True):
        theirs.norm1.eps, theirs.norm2.eps = ours.norm1.eps, ours.norm2.eps
    rebuilt.norm = model.norm
    if before:
        patches, prefix = before[0]
        start = torch.cat([prefix, patches], dim=1)
    else:
        start = model._embed(x, None)
    rebuilt.patch_embed = nn.Identity()
    rebuilt._pos_embed = lambda _: start
    expected, expected_tokens = attention_maps(rebuilt, x, 0)

    assert len(maps) == len(expected) == len(model.blocks) - first
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert wanted.std(-1).max() > 1e-3, "a uniform map would agree in any order"
    torch.testing.assert_close(tokens, expected_tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_models_are_pickled_and_deep_copied_for_workers(name):
    model, x = make(name), images(1, 3, 128, 128)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.pretrained_cfg == model.pretrained_cfg
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


# timm's patch embedding compares sizes, which a trace freezes and warns of
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_a_traced_model_takes_other_batches(name):
    model = make(name)
    traced = torch.jit.trace(model, images(2, 3, 128, 128))
    x = images(3, 3, 128, 128)
    assert_near(traced(x), model(x), roundings=2048)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize("out_indices", [1, (0, 2), (-1,), None])
def test_feature_maps_of_segmentation_are_the_tokens_laid_out_in_rows_and_columns(name, out_indices):
    options = {} if out_indices is None else {"out_indices": out_indices}
    maps = make(name, features_only=True, **options)
    model, x = make(name), images(2, 3, 64, 96)
    found = maps(x)
    wanted = {1: [-1], None: [-3, -2, -1]}.get(out_indices, out_indices)
    wanted = [index % len(model.blocks) for index in wanted]
    expected = model.forward_intermediates(x, indices=wanted, intermediates_only=True, norm=False)
    assert len(found) == len(wanted) == len(maps.feature_info.channels())
    assert maps.feature_info.reduction() == [16] * len(wanted)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == (2, model.embed_dim, 4, 6)
        assert_near(ours, theirs, roundings=2048)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_dense_features_are_what_is_left_behind_the_leading_prefix_tokens(name):
    model, x = make(name, reg_tokens=2), images(1, 3, 64, 96)
    tokens = model.forward_features(x)
    _, (last,) = model.forward_intermediates(x, indices=1, norm=True)
    assert model.num_prefix_tokens == 3
    assert tokens.shape[1] == 3 + 24
    grid = tokens[:, 3:].transpose(1, 2).reshape(1, -1, 4, 6)
    assert_near(grid, last, roundings=2048)
    assert_near(model(x), tokens[:, 0], roundings=2048)
