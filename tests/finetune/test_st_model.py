"""The ST token: class and patch features are those of the backbone alone, and the token learns from the image."""

import copy
import os

import pytest
import timm
import torch
import torch.distributed as dist
from support.forked import spawn
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock

from timm_mvhybrid.finetune import FinetuneError, STModel
from timm_mvhybrid.models import TEST_MODEL_NAMES

SIZE = 64
VIT = dict(img_size=SIZE, depth=3, embed_dim=64, num_heads=2, num_classes=0)
NOISE = dict(
    drop_path_rate=0.4, proj_drop_rate=0.2, attn_drop_rate=0.1, pos_drop_rate=0.1, patch_drop_rate=0.25
)
OURS = [(name, dict(img_size=SIZE)) for name in TEST_MODEL_NAMES]
OTHERS = [
    ("vit_tiny_patch16_224", options)
    for options in (
        VIT,
        dict(VIT, qk_norm=True, init_values=0.1, reg_tokens=4),
        dict(VIT, class_token=False, global_pool="avg"),
        dict(VIT, dynamic_img_size=True, pre_norm=True, no_embed_class=True),
        dict(VIT, attn_layer="diff"),
        dict(VIT, scale_attn_norm=True, scale_mlp_norm=True),
        dict(VIT, block_fn=ResPostBlock, init_values=0.1),
        dict(VIT, block_fn=ParallelThingsBlock),
        # as the largest DINOv2
        dict(VIT, mlp_layer=SwiGLUPacked, mlp_ratio=6, init_values=1e-5),
    )
]
# its second prefix token is the one of distillation
OTHERS.append(("deit_tiny_distilled_patch16_224", VIT))


def pair(name, options, *, dtype=torch.float32, token=1.0, **st):
    """A backbone as it is and a copy with the token, of which every parameter says something."""
    torch.manual_seed(0)
    alone = timm.create_model(name, **options).to(dtype).eval()
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model = STModel(copy.deepcopy(alone), **st).eval()
    with torch.no_grad():
        model.st_token.mul_(token)
    return alone, model


def images(batch=2, dtype=torch.float32, size=SIZE):
    return torch.randn(batch, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def ordinary(backbone, tokens):
    return {"class": tokens[:, 0], "patch": tokens[:, backbone.num_prefix_tokens :]}


def assert_same(alone, tokens, features, bound=0.0):
    for name, expected in ordinary(alone, tokens).items():
        if name in features:
            assert (features[name] - expected).abs().max() <= bound, name


def distinct(features):
    """A loss that no normalisation of the token makes constant."""
    weights = torch.linspace(-1, 1, features["st"].shape[1], dtype=features["st"].dtype)
    return (features["st"] @ weights).square().sum()


@pytest.mark.parametrize("st_start", [None, 0])
@pytest.mark.parametrize(("name", "options"), OURS + OTHERS)
def test_ordinary_features_are_the_backbones_at_any_value_of_the_token(name, options, st_start):
    alone, model = pair(name, options, token=1000.0, st_start=st_start)
    expected = alone.forward_features(images())
    assert_same(alone, expected, model.features(images()))
    assert torch.equal(model.backbone.forward_features(images()), expected)
    tokens = model.forward_features(images())
    assert ("class" in model.features(images())) == alone.has_class_token
    assert tokens.shape == (
        2,
        1 + int(alone.has_class_token) + expected.shape[1] - alone.num_prefix_tokens,
        64,
    )
    assert torch.equal(tokens[:, int(alone.has_class_token)], model.features(images())["st"])


@pytest.mark.parametrize(("name", "options"), OURS + OTHERS[:2])
def test_in_float64_too(name, options):
    alone, model = pair(name, options, dtype=torch.float64, token=1000.0, st_start=0)
    x = images(dtype=torch.float64)
    assert_same(alone, alone.forward_features(x), model.features(x), bound=1e-13)


@pytest.mark.parametrize(("name", "options"), OURS + OTHERS[:1])
def test_in_training_random_numbers_are_those_without_the_token(name, options):
    alone, model = pair(name, {**options, **NOISE}, st_start=0)
    results = []
    for network, run in ((alone, alone.forward_features), (model, model.features)):
        network.train()
        torch.manual_seed(3)
        results.append((run(images(4)), torch.rand(3)))
    (tokens, after), (features, after_too) = results
    assert_same(alone, tokens, features)
    assert torch.equal(after, after_too)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("name", "options"), OURS + OTHERS)
def test_the_token_reads_the_image_and_learns(name, options):
    _, model = pair(name, options, st_start=0)
    with torch.no_grad():
        model.st_token.normal_()
    features = model.features(images())
    # all tokens begin alike, so that what differs comes from the images
    assert (features["st"][0] - features["st"][1]).norm() > 1e-5 * features["st"].norm()
    distinct(features).backward()
    assert model.st_token.grad.norm() > 1e-3
    # the embedding of what it read
    assert model.backbone.patch_embed.proj.weight.grad.norm() > 0


@pytest.mark.parametrize("name", ["test_mvhybrid", "test_vim_einfft"])
def test_ordinary_features_have_the_backbones_gradients(name):
    alone, model = pair(name, dict(img_size=SIZE), st_start=0)
    ordinary(alone, alone.forward_features(images()))["class"].sum().backward()
    model.features(images())["class"].sum().backward()
    assert not model.st_token.grad  # None, or 0 throughout
    for (key, expected), found in zip(alone.named_parameters(), model.backbone.parameters(), strict=True):
        if expected.grad is not None:
            assert torch.equal(expected.grad, found.grad), key


@pytest.mark.parametrize(("name", "options"), [*OURS, OTHERS[0]])
def test_under_autocast(name, options):
    alone, model = pair(name, options, st_start=0)
    with torch.autocast("cpu", torch.bfloat16):
        expected, features = alone.forward_features(images()), model.features(images())
    assert_same(alone, expected, features)
    distinct({"st": features["st"].float()}).backward()
    assert torch.isfinite(model.st_token.grad).all()


@pytest.mark.parametrize(("name", "options"), [*OURS, OTHERS[0]])
def test_with_checkpointing(name, options):
    alone, model = pair(name, {**options, **NOISE}, st_start=0)
    grads = []
    for enable in (False, True):
        model.train().set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        features = model.features(images(4))
        distinct(features).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(*both) for both in zip(*grads, strict=True))
    torch.manual_seed(3)
    assert_same(alone, alone.train().forward_features(images(4)), features)


def test_large_batches_are_cut_as_without_the_token():
    alone, model = pair("test_mvhybrid", {}, st_start=0)
    x = images(160, size=128)
    with torch.inference_mode():
        assert_same(alone, alone.forward_features(x), model.features(x))


def test_compiled():
    # one block of each kind is enough to trace
    for name, options in (("test_mvhybrid", dict(img_size=SIZE, depth=2, ssm_depth=1)), OTHERS[0]):
        _, model = pair(name, options, st_start=0)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found, expected = compiled(images()), model(images())
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=2e-5)
        alone = torch.compile(model.backbone.forward_features, backend="aot_eager", fullgraph=True)
        assert_same(model.backbone, alone(images()), found)


def test_writing_begins_with_no_change_and_can_be_learned():
    alone, model = pair("test_mvhybrid", dict(img_size=SIZE), st_start=0, st_writes=True)
    features = model.features(images())
    assert_same(alone, alone.forward_features(images()), features)
    features["class"].square().sum().backward()
    attention = slice(alone.ssm_depth, None)
    assert (model.write_gates.grad[attention] != 0).all()
    assert not model.write_gates.grad[: alone.ssm_depth].any()
    assert not model.st_token.grad.any()
    with torch.no_grad():
        model.write_gates.fill_(0.5)
    model.zero_grad()
    features = model.features(images())
    assert not torch.equal(features["class"], alone.forward_features(images())[:, 0])
    features["class"].square().sum().backward()
    assert model.st_token.grad.any()


def test_copies_and_release():
    alone, model = pair("test_vim_einfft", dict(img_size=SIZE))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(alone, alone.forward_features(images()), copied.features(images()))
    released = copied.release()
    assert [type(m) for m in released.modules()] == [type(m) for m in alone.modules()]
    assert torch.equal(released.forward_features(images()), alone.forward_features(images()))


def test_default_start_is_the_first_attention():
    for name, start in (("test_mvhybrid", 2), ("test_vim_einfft", 0), ("test_vit12", 0)):
        assert pair(name, dict(img_size=SIZE))[1].st_start == start


def test_what_cannot_carry_the_token_is_refused():
    backbone = timm.create_model("test_mvhybrid")
    for st_start in (4, -1, True, "half"):
        with pytest.raises(FinetuneError, match="`st_start` is"):
            STModel(backbone, st_start=st_start)
    with pytest.raises(FinetuneError, match="`st_writes`"):
        STModel(timm.create_model("test_vim_einfft"), st_writes=True)
    eva = dict(img_size=28, depth=1, embed_dim=64, num_heads=2, num_classes=0)
    for name, options, kind in (("resnet18", {}, "ResNet"), ("eva02_tiny_patch14_224", eva, "Eva")):
        with pytest.raises(FinetuneError, match=f"`backbone` is a {kind}; an ST token goes into"):
            STModel(timm.create_model(name, **options))
    parallel = timm.create_model("vit_tiny_patch16_224", **VIT, block_fn=ParallelScalingBlock)
    with pytest.raises(FinetuneError, match=r"ParallelScalingBlock at blocks\.0"):
        STModel(parallel)
    assert type(parallel.blocks[0]) is ParallelScalingBlock

    class Other(timm.models.VisionTransformer):
        def forward_features(self, x):
            return super().forward_features(x) * 2

    with pytest.raises(FinetuneError, match="Other with a forward_features of its own"):
        STModel(Other(**VIT))


def _work(rank, folder, grouped):
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    from timm_mvhybrid.runtime.ranks import close_process_group
    from timm_mvhybrid.training.config import ParallelConfig
    from timm_mvhybrid.training.parallelize import parallelize

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    alone, model = pair("test_mvhybrid", dict(img_size=SIZE), st_start=0)
    if grouped:
        config = ParallelConfig(device="cpu", precision="bf16", activation_checkpointing=True)
        run_alone = torch.nn.Module()
        run_alone.backbone, run_alone.forward = alone, alone.forward_features
        for network in (model, run_alone):
            parallelize(network, mesh, config, recompute=True)
    else:
        for network, blocks in ((alone, alone.blocks), (model, model.backbone.blocks)):
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)
        register_fsdp_forward_method(alone, "forward_features")
        run_alone = alone.forward_features
    with torch.autocast("cpu", torch.bfloat16, enabled=grouped):
        expected = run_alone(images())
        features = model.features(images())
    assert_same(alone, expected, features)
    # of the ST token alone: the ordinary tokens of the last block get no gradient
    distinct({"st": features["st"].float()}).backward()
    grad = model.st_token.grad.full_tensor()
    assert grad.norm() > 1e-6
    if rank == 0:
        torch.save(grad, f"{folder}/grad.pt")
    close_process_group()


@pytest.mark.distributed
@pytest.mark.parametrize("grouped", [False, True])
def test_sharded(tmp_path, grouped):
    spawn(_work, (str(tmp_path), grouped))
    assert os.path.exists(tmp_path / "grad.pt")
    if not grouped:
        _, model = pair("test_mvhybrid", dict(img_size=SIZE), st_start=0)
        distinct(model.features(images())).backward()
        grad = torch.load(tmp_path / "grad.pt", weights_only=True)
        assert (grad - model.st_token.grad).norm() <= 1e-5 * grad.norm()
