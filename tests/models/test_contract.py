"""What a timm model must keep: token order, sizes, options, dtypes, tracing."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from support.bounds import assert_near
from timm.models import VisionTransformer

from timm_mvhybrid.layers import SSMBlock
from timm_mvhybrid.layers.token_order import to_scan_order, to_timm_order
from timm_mvhybrid.models import HE_MEAN, HE_STD, MODEL_NAMES, TEST_MODEL_NAMES, HybridVisionTransformer

SSM_NAMES = [name for name in TEST_MODEL_NAMES if "vit" not in name]


def make(name, **options):
    """A model with weights large enough that every part of it shows in the output."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_" not in parameter_name:
                parameter.mul_(2)
            if "gamma" in parameter_name:
                parameter.fill_(0.5)
            if "token" in parameter_name:
                parameter.normal_()
    return model


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_distance(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@pytest.mark.parametrize("name", [*MODEL_NAMES, *TEST_MODEL_NAMES])
def test_registration(name):
    model = timm.create_model(name, device="meta")
    assert isinstance(model, VisionTransformer)
    assert timm.is_model(name)
    config = model.pretrained_cfg
    assert config["mean"] == HE_MEAN
    assert config["std"] == HE_STD
    assert config["num_classes"] == model.num_classes == 0
    assert config["input_size"][1:] == model.patch_embed.img_size
    data = timm.data.resolve_data_config({}, model=model)
    assert data["mean"] == HE_MEAN
    assert data["crop_pct"] == 1.0


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_bare_model_gives_pooled_features(name):
    model = timm.create_model(name).eval()
    for size in (112, 128):
        assert model(images(2, 3, size, size)).shape == (2, model.num_features)


@pytest.mark.parametrize("num_prefix", [0, 1, 3])
@pytest.mark.parametrize("num_patches", [1, 4, 9])
def test_orders_are_inverse_and_the_class_token_is_at_half(num_prefix, num_patches):
    tokens = torch.arange(num_prefix + num_patches).view(1, -1, 1)
    scan = to_scan_order(tokens, num_prefix)
    torch.testing.assert_close(to_timm_order(scan, num_prefix), tokens, rtol=0, atol=0)
    patches = [t for t in scan.flatten().tolist() if t >= num_prefix]
    assert patches == sorted(patches)
    if num_prefix:
        assert scan.flatten().tolist().index(0) == num_patches // 2


@pytest.mark.parametrize("name", SSM_NAMES)
@pytest.mark.parametrize("reg_tokens", [0, 2])
def test_blocks_see_their_order(name, reg_tokens):
    model = make(name, reg_tokens=reg_tokens)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(
            lambda module, inputs, _: seen.append((isinstance(module, SSMBlock), inputs[0]))
        )
    x = images(1, 3, 128, 128)
    _, outputs = model.forward_intermediates(x, return_prefix_tokens=True, output_fmt="NLC")
    embedded = model._pos_embed(model.patch_embed(x))
    expected = [embedded, *(torch.cat([prefix, patches], dim=1) for patches, prefix in outputs)]
    prefix = 1 + reg_tokens
    for (ssm, actual), tokens in zip(seen, expected, strict=False):
        torch.testing.assert_close(actual, to_scan_order(tokens, prefix) if ssm else tokens, rtol=0, atol=0)
    assert any(ssm for ssm, _ in seen)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_every_way_to_intermediates_agrees(name):
    model = make(name)
    x = images(2, 3, 96, 160)
    depth, dim = len(model.blocks), model.embed_dim
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)
    assert [y.shape for y in maps] == [(2, dim, 6, 10)] * depth
    tokens = model.forward_intermediates(
        x, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    for y, (patches, prefix) in zip(maps, tokens, strict=True):
        torch.testing.assert_close(y.flatten(2).mT, patches, rtol=0, atol=0)
        assert prefix.shape == (2, 1, dim)
    normed = model.forward_intermediates(x, [-1], norm=True, output_fmt="NLC", intermediates_only=True)[0]
    torch.testing.assert_close(normed, final[:, 1:], rtol=0, atol=0)
    early = model.forward_intermediates(x, [0, 1], stop_early=True, intermediates_only=True)
    for y, expected in zip(early, maps, strict=False):
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
    layers = model.get_intermediate_layers(x, n=2, reshape=True)
    for y, expected in zip(layers, maps[-2:], strict=True):
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
    result = model.forward_intermediates(x, [1], output_dict=True, return_prefix_tokens=True)
    assert set(result) == {"image_intermediates", "image_intermediates_prefix", "image_features"}
    torch.testing.assert_close(result["image_intermediates"][0], maps[1], rtol=0, atol=0)
    features = timm.create_model(name, features_only=True, out_indices=(0, depth - 1)).eval()
    features.model.load_state_dict(model.state_dict(), strict=False)
    for y, expected in zip(features(x), (maps[0], maps[-1]), strict=True):
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="`output_fmt` is 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_patch_tokens_are_in_raster_order(name):
    """A change in one square of the image shows most at that square's token in the first block's map."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = images(1, 3, 96, 160)
    for row, column in ((0, 0), (2, 7), (5, 9)):
        changed = x.clone()
        changed[..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 5
        before, after = (
            model.forward_intermediates(y, [0], intermediates_only=True)[0] for y in (x, changed)
        )
        change = (after - before).norm(dim=1)[0]
        assert divmod(change.argmax().item(), 10) == (row, column)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", "map", ""])
def test_pooling(name, pool):
    model = make(name, global_pool=pool)
    x = images(2, 3, 128, 128)
    tokens, pooled = model.forward_features(x), model(x)
    expected = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1), "": tokens}
    if pool in expected:
        assert_near(pooled, expected[pool], roundings=2048)
    else:
        assert pooled.shape == (2, model.embed_dim)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize("size", [(16, 16), (32, 208), (224, 48)])
def test_any_multiple_of_sixteen(name, size):
    model = make(name)
    assert model.forward_features(images(1, 3, *size)).shape[1] == 1 + size[0] * size[1] // 256


@pytest.mark.parametrize("name", ["test_mvhybrid", "test_hydra_einfft"])
def test_position_free_models_ignore_the_nominal_size(name):
    x = images(1, 3, 64, 96)
    nominal, other = make(name), make(name, img_size=(64, 96), dynamic_img_size=False)
    torch.testing.assert_close(nominal(x), other(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_set_input_size_and_patch_size(name):
    model = make(name, dynamic_img_size=False)
    with pytest.raises(AssertionError, match="Input height"):
        model(images(1, 3, 64, 64))
    model.set_input_size(img_size=(64, 96))
    assert model.forward_features(images(1, 3, 64, 96)).shape[1] == 25
    model.set_input_size(img_size=(64, 64), patch_size=(8, 8))
    assert model.forward_features(images(1, 3, 64, 64)).shape[1] == 65


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_mask_token_replaces_masked_patches(name):
    model = make(name, mask_token=True)
    x = images(2, 3, 64, 96)
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    masked = model.forward_features(x, mask)
    pixels = mask.view(2, 1, 4, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)
    # what lies under the mask has no influence, what lies beside it has
    torch.testing.assert_close(
        model.forward_features(torch.where(pixels, 9.0, x), mask), masked, rtol=0, atol=0
    )
    assert relative_distance(model.forward_features(torch.where(pixels, x, x + 1), mask), masked) > 1e-3
    assert relative_distance(model.forward_features(x), masked) > 1e-3
    assert_near(model.forward_features(x, torch.zeros_like(mask)), model.forward_features(x), roundings=2048)
    masked.sum().backward()
    assert model.mask_token.grad.abs().sum() > 0


def test_bad_masks_are_named():
    x, mask = images(1, 3, 64, 64), torch.zeros(1, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="mask_token=True"):
        make("test_mvhybrid").forward_features(x, mask)
    model = make("test_mvhybrid", mask_token=True)
    with pytest.raises(ValueError, match=r"`mask` has dtype torch.float32"):
        model.forward_features(x, mask.float())
    with pytest.raises(ValueError, match=r"expected \(batch, patches\) = \(1, 16\)"):
        model.forward_features(x, mask[:, :-1])


def test_attention_masks():
    x = images(1, 3, 64, 64)
    with pytest.raises(ValueError, match="ssm_depth=0"):
        make("test_mvhybrid").forward_features(x, is_causal=True)
    vit = make("test_vit12", global_pool="token")
    causal = vit.forward_features(x, is_causal=True)
    visible = torch.ones(17, 17, dtype=torch.bool).tril()
    assert_near(vit.forward_features(x, attn_mask=visible), causal, roundings=2048)
    assert relative_distance(vit.forward_features(x), causal) > 1e-3
    with pytest.raises(ValueError, match="not both"):
        vit.forward_features(x, attn_mask=visible, is_causal=True)


def test_ssm_depth():
    def count(name, **options):
        model = timm.create_model(name, device="meta", **options)
        kinds = [isinstance(block, SSMBlock) for block in model.blocks]
        assert kinds == sorted(kinds, reverse=True)
        return sum(kinds)

    assert count("mvhybrid_small_patch16_256") == 12
    assert count("mvhybrid_small_patch16_256", ssm_depth=6) == 6
    assert count("test_mvhybrid", depth=5) == 3
    assert count("test_mvhybrid", ssm_depth=0) == 0
    assert count("test_vim_einfft", depth=5) == 5
    assert count("test_vim_einfft", ssm_depth="half") == 2
    assert timm.create_model("test_mvhybrid", depth=3, device="meta").layout() == (
        "2 × MambaVision + EinFFT, 1 × attention + MLP"
    )


def test_options_reach_the_blocks():
    model = timm.create_model(
        "test_mvhybrid",
        channel_mixer="mlp",
        mlp_ratio=2,
        init_values=1e-5,
        drop_path_rate=0.3,
        proj_drop_rate=0.1,
        ssm_kwargs={"d_state": 8},
        qk_norm=True,
    )
    ssm, attention = model.blocks[1], model.blocks[-1]
    assert ssm.channel_mixer.fc1.out_features == attention.mlp.fc1.out_features == 128
    assert ssm.ls1.gamma.shape == attention.ls2.gamma.shape == (64,)
    assert 0 < ssm.drop_path1.drop_prob < attention.drop_path1.drop_prob == pytest.approx(0.3)
    assert ssm.drop.p == attention.attn.proj_drop.p == 0.1
    assert ssm.mixer.d_state == 8
    assert attention.attn.q_norm.weight.shape == (32,)
    assert timm.create_model("test_mvhybrid", channel_mixer="none").blocks[0].channel_mixer is None


def test_patch_dropout_keeps_the_order_of_the_scan():
    model = make("test_mvhybrid", patch_drop_rate=0.5).train()
    kept = []
    model.blocks[0].register_forward_hook(lambda _, inputs, __: kept.append(inputs[0]))
    x = images(1, 3, 128, 128)
    model(x)
    tokens = model.patch_embed(x).flatten(1, 2)[0]
    patches = to_timm_order(kept[0], 1)[0, 1:]
    positions = torch.cdist(patches, tokens).argmin(1)
    assert len(positions) == 32
    assert positions.tolist() == sorted(positions.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(ssm_depth=5), "`ssm_depth` is 5; allowed are 0 to depth=4"),
        (dict(ssm_depth=-1), "`ssm_depth` is -1"),
        (dict(ssm_depth="most"), "`ssm_depth` is 'most'"),
        (dict(ssm_depth=1.5), "`ssm_depth` is 1.5"),
        (dict(ssm_mixer="lstm"), "`ssm_mixer` is 'lstm'; allowed are 'mambavision', 'vim', 'hydra', None"),
        (dict(channel_mixer="fft"), "`channel_mixer` is 'fft'; allowed are 'einfft', 'mlp', 'none'"),
        (dict(init="xavier"), "`init` is 'xavier'; allowed are 'official', 'mamba'"),
        (dict(weight_init="jax"), "`weight_init` is 'jax'"),
        (dict(global_pool="mean"), "`global_pool` is 'mean'"),
        (dict(pos_embed="rope"), "`pos_embed` is 'rope'"),
        (dict(img_size=100), "`img_size` is 100; it must be a multiple of `patch_size`, which is 16"),
        (dict(num_heads=5), "`num_heads` is 5; it must divide `embed_dim`, which is 64"),
        (dict(depth=0), "`depth` is 0"),
        (dict(embed_dim=66, num_heads=2), "`d_model` is 66"),
        (dict(class_token=False), "`class_token` is False"),
        (dict(ssm_kwargs={"headdim": 8}), r"`ssm_kwargs` has \['headdim'\]; MambaVisionMixer takes"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("test_mvhybrid", **options)


def test_attention_alone_has_no_state_space_blocks():
    with pytest.raises(ValueError, match="`ssm_depth` is 'half', but `ssm_mixer` is None"):
        HybridVisionTransformer(ssm_mixer=None)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2.5e-3)])
def test_half_precision_is_close_to_float32(name, dtype, bound):
    model = make(name)
    x = images(2, 3, 128, 128)
    with torch.no_grad():
        exact = model.forward_features(x)
        with torch.autocast("cpu", dtype):
            autocast = model.forward_features(x)
        half = copy.deepcopy(model).to(dtype).forward_features(x.to(dtype))
    assert autocast.dtype == torch.float32
    assert half.dtype == dtype
    assert relative_distance(autocast, exact) < bound
    assert relative_distance(half, exact) < bound


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_checkpointing_gives_identical_gradients(name, dtype):
    grads = []
    for enable in (False, True):
        model = make(name, dtype=dtype).train()
        model.set_grad_checkpointing(enable)
        model(images(2, 3, 64, 64).to(dtype)).square().sum().backward()
        grads.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=0, atol=0, msg=key)


# a trace takes shapes for constants, as asked
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_pickle_and_torchscript_round_trips(name):
    model = make(name)
    x = images(1, 3, 96, 96)
    expected = model(x)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), expected, rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_compile_fullgraph(name):
    model = make(name, depth=2)  # a block of each kind
    x = images(2, 3, 64, 64)
    expected = model(x)
    cotangent = images(*expected.shape, seed=1)
    expected.backward(cotangent)
    grads = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    # the graph is what is under test; the C++ compiler behind it takes minutes for nothing more
    actual = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    actual.backward(cotangent)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for key, parameter in model.named_parameters():
        assert relative_distance(parameter.grad, grads[key]) < 1e-4, key


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_no_weight_decay_names_parameters(name):
    for options in ({}, dict(mask_token=True, reg_tokens=1, pos_embed="learn")):
        model = timm.create_model(name, device="meta", **options)
        names = dict(model.named_parameters())
        assert model.no_weight_decay()
        assert model.no_weight_decay() <= set(names)
        groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
        assert set(groups) == set(names)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_pruning_without_the_norm(name):
    model = make(name)
    x = images(1, 3, 64, 64)
    expected = model.forward_intermediates(x, [1], intermediates_only=True, output_fmt="NLC")[0]
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert len(model.blocks) == 2
    torch.testing.assert_close(model.forward_features(x)[:, 1:], expected, rtol=0, atol=0)
    model.forward_features(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_head_and_channels(name):
    model = timm.create_model(name, num_classes=5, in_chans=4).eval()
    assert model(images(2, 4, 128, 128)).shape == (2, 5)
    model.reset_classifier(3, "avg")
    assert model(images(2, 4, 128, 128)).shape == (2, 3)


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
@pytest.mark.parametrize("init", ["official", "mamba"])
def test_weights_can_be_drawn_after_to_empty(name, init):
    torch.manual_seed(0)
    direct = timm.create_model(name, init=init, mask_token=True)
    model = timm.create_model(name, init=init, mask_token=True, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    for key, parameter in model.named_parameters():
        expected = direct.get_parameter(key)
        assert torch.isfinite(parameter).all(), key
        if parameter.numel() < 64:
            continue
        assert parameter.std(correction=0).item() == pytest.approx(
            expected.std(correction=0).item(), rel=0.5, abs=2e-3
        ), key


def test_importing_is_light():
    """What none of these imports needs; one process for all, since what was imported stays imported."""
    code = (
        "import sys, timm_mvhybrid\n"
        "heavy = {'lightly', 'scanpy', 'anndata', 'openslide', 'tiffslide', 'sklearn', 'onnx', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import timm_mvhybrid.ops, timm_mvhybrid.models\n"
        "heavy = {'onnx', 'onnxscript', 'onnx_ir', 'onnxruntime', 'numba'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", "[]"]
