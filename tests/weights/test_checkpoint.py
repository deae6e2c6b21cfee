"""Checkpoints of every accepted origin give the same features; the others are refused by name."""

import hashlib
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from timm_mvhybrid.layers.token_order import to_scan_order
from timm_mvhybrid.models import TEST_MODEL_NAMES, CheckpointError, checkpoint_filter_fn, load_weights


def make(name="test_mvhybrid", seed=0, **options):
    torch.manual_seed(seed)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images(size=128):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def assert_loads(target, checkpoint, source):
    """Loads a foreign checkpoint into a model of other weights and compares the features."""
    assert not torch.allclose(target(images()), source(images()))
    target.load_state_dict(checkpoint_filter_fn(checkpoint, target), strict=True)
    torch.testing.assert_close(target(images()), source(images()))


def to_official(weights):
    """Renames our keys to those of the official repository."""
    renamed = {}
    for key, value in weights.items():
        key = key.replace(".attn.", ".mixer.").replace(".mlp.", ".channel_mixer.")
        key = key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2")
        renamed[key.replace("blocks.", "blocks.blocks.")] = value
    return renamed


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_own_format(name):
    source = make(name)
    assert_loads(make(name, seed=1), source.state_dict(), source)


@pytest.mark.parametrize("options", [{}, dict(init_values=0.1), dict(channel_mixer="mlp"), dict(depth=3)])
def test_official_repository(options):
    source = make(mask_token=True, **options)
    official = to_official(source.state_dict())
    assert_loads(make(seed=1, **options), official, source)
    assert_loads(make(seed=2, mask_token=True, **options), official, source)


@pytest.mark.parametrize("wrap", ["teacher", "student", "teacher.backbone", "module.student.backbone.module"])
def test_training_checkpoints(wrap):
    source = make(mask_token=True)
    weights = {f"{wrap}.{key}": value for key, value in to_official(source.state_dict()).items()}
    if "backbone" in wrap:
        weights[f"{wrap.split('.backbone')[0]}.dino_head.last_layer.weight"] = torch.zeros(3)
    assert_loads(make(seed=1), {"model": weights, "iteration": 7}, source)


def test_teacher_comes_before_student():
    source, student = make(), make(seed=5)
    flat = {f"student.backbone.{k}": v for k, v in student.state_dict().items()}
    flat |= {f"teacher.backbone.{k}": v for k, v in source.state_dict().items()}
    assert_loads(make(seed=1), flat, source)
    nested = {"student": student.state_dict(), "teacher": source.state_dict(), "epoch": 3}
    assert_loads(make(seed=1), nested, source)


def test_wrappers_within_the_names():
    source = make()
    weights = {
        key.replace(".mixer.", "._orig_mod.mixer."): value for key, value in source.state_dict().items()
    }
    weights = {
        key.replace(".norm1.", "._fsdp_wrapped_module.norm1."): value for key, value in weights.items()
    }
    assert_loads(make(seed=1), weights, source)


def test_dinov2_with_block_chunks():
    source = make("test_vit12", mask_token=True)
    chunked = {
        key.replace(f"blocks.{i}.", f"blocks.{i // 4}.{i}.") if key.startswith(f"blocks.{i}.") else key: value
        for key, value in source.state_dict().items()
        for i in [int(key.split(".")[1]) if key.startswith("blocks.") else -1]
    }
    assert any(key.startswith("blocks.2.11.") for key in chunked)
    assert_loads(
        make("test_vit12", seed=1), {"teacher": {f"backbone.{k}": v for k, v in chunked.items()}}, source
    )


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_dinov2_with_registers(no_embed_class):
    weights = dict(make("test_vit12", reg_tokens=4).state_dict())
    registers = weights.pop("reg_token")
    position = weights["pos_embed"]
    weights["pos_embed"] = torch.cat([position[:, :1], position[:, 5:]], dim=1)
    weights["register_tokens"] = registers
    target = make("test_vit12", seed=1, reg_tokens=4, no_embed_class=no_embed_class)
    target.load_state_dict(checkpoint_filter_fn(weights, target))
    # as DINOv2 joins them: position on class and patch tokens, none on registers
    patches = target.patch_embed(images()).flatten(1, 2) + weights["pos_embed"][:, 1:]
    first = weights["cls_token"] + weights["pos_embed"][:, :1]
    prefix = torch.cat([first, registers], dim=1).expand(2, -1, -1)
    tokens = target.norm(target.blocks(torch.cat([prefix, patches], dim=1)))
    torch.testing.assert_close(target.forward_features(images()), tokens)


def test_timm_vit_small():
    source = timm.create_model("vit_small_patch16_224", num_classes=10).eval()
    target = make("vit12_small_patch16_256", seed=1, img_size=224)
    target.load_state_dict(checkpoint_filter_fn(source.state_dict(), target), strict=True)
    x = images(224)
    torch.testing.assert_close(target.forward_features(x), source.forward_features(x), rtol=1e-4, atol=1e-4)
    resized = make("vit12_small_patch16_256", seed=1)
    resized.load_state_dict(checkpoint_filter_fn(source.state_dict(), resized), strict=True)
    assert resized.pos_embed.shape == (1, 257, 384)
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, new_size=[16, 16], num_prefix_tokens=1)
    torch.testing.assert_close(resized.pos_embed, expected)


def test_stock_vim():
    source = make("test_vim_einfft", channel_mixer="none")
    weights = {}
    for key, value in source.state_dict().items():
        key = key.replace(".norm1.", ".norm.").replace("blocks.", "layers.")
        weights["norm_f." + key.removeprefix("norm.") if key.startswith("norm.") else key] = value
    weights["pos_embed"] = to_scan_order(weights["pos_embed"], 1)
    weights["head.weight"], weights["head.bias"] = torch.zeros(1000, 64), torch.zeros(1000)
    assert_loads(make("test_vim_einfft", seed=1, channel_mixer="none"), weights, source)


@pytest.mark.parametrize("name", ["test_vit12", "test_vim_einfft"])
def test_position_embedding_is_resized_like_timm_resizes_it(name):
    source = make(name)
    target = make(name, seed=1, img_size=(64, 192))
    target.load_state_dict(checkpoint_filter_fn(source.state_dict(), target))
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, new_size=[4, 12], num_prefix_tokens=1)
    torch.testing.assert_close(target.pos_embed, expected)


def test_position_embedding_of_an_unknown_grid():
    weights = make("test_vit12", img_size=(64, 192)).state_dict()
    same_grid = make("test_vit12", seed=1, img_size=(64, 192))
    same_grid.load_state_dict(checkpoint_filter_fn(weights, same_grid))
    torch.testing.assert_close(same_grid.pos_embed, weights["pos_embed"])
    with pytest.raises(CheckpointError, match="covers 48 patches, which is not a square grid"):
        checkpoint_filter_fn(weights, make("test_vit12"))
    target = make("test_vit12")
    target.pretrained_cfg = {"input_size": (3, 64, 192)}
    assert checkpoint_filter_fn(weights, target)["pos_embed"].shape == (1, 65, 64)


def test_position_embedding_of_a_long_grid_with_a_square_number_of_patches():
    source, target = (
        make("test_vim_einfft", img_size=(32, 128)),
        make("test_vim_einfft", seed=1, img_size=(32, 128)),
    )
    weights = checkpoint_filter_fn(source.state_dict(), target)
    assert torch.equal(weights["pos_embed"], source.pos_embed)
    target.pretrained_cfg = {**target.pretrained_cfg, "input_size": (3, 64, 64)}
    assert not torch.equal(checkpoint_filter_fn(source.state_dict(), target)["pos_embed"], source.pos_embed)


def test_patch_size_is_resampled():
    source, target = make(), make(seed=1, patch_size=8, img_size=64)
    weights = checkpoint_filter_fn(source.state_dict(), target)
    assert weights["patch_embed.proj.weight"].shape == (64, 3, 8, 8)
    target.load_state_dict(weights)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (dict(depth=2), dict(depth=4), r"\d+ missing \(blocks\.\d"),
        (dict(depth=4), dict(depth=2), r"37 unexpected \("),
        (dict(ssm_depth=1), dict(ssm_depth=2), r"missing \(blocks\.1\.mixer"),
        (dict(embed_dim=32), {}, r"of another shape \(cls_token \(1, 1, 32\) instead of \(1, 1, 64\)"),
        ({}, dict(reg_tokens=2), r"1 missing \(reg_token\)"),
        (dict(init_values=0.1), {}, r"unexpected \(blocks\.0\.ls1\.gamma"),
        ({}, dict(channel_mixer="mlp"), "channel_mixer"),
        (dict(pos_embed="learn"), {}, r"1 unexpected \(pos_embed\)"),
    ],
)
def test_other_architectures_are_refused(source, target, message):
    weights = make(**source).state_dict()
    model = make(seed=1, **target)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        checkpoint_filter_fn(weights, model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_create_model_refuses_a_partial_checkpoint_also_with_a_head(tmp_path):
    weights = make().state_dict()
    del weights["blocks.1.mixer.A_log"]
    save_file(weights, tmp_path / "partial.safetensors")
    overlay = dict(file=str(tmp_path / "partial.safetensors"))
    for num_classes in (0, 5):  # timm loads non-strictly where the number of classes differs
        with pytest.raises(CheckpointError, match=r"1 missing \(blocks\.1\.mixer\.A_log\)"):
            timm.create_model(
                "test_mvhybrid", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes
            )


def test_create_model_loads_a_file_into_other_channels_and_classes(tmp_path):
    source = make()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    overlay = dict(file=str(tmp_path / "weights.safetensors"))
    model = timm.create_model(
        "test_mvhybrid", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5
    ).eval()
    torch.testing.assert_close(model.forward_features(images()), source.forward_features(images()))
    grey = timm.create_model("test_mvhybrid", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1)
    summed = source.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.patch_embed.proj.weight, summed)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_load_weights(tmp_path, suffix):
    source, target = make(), make(seed=1)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save({"teacher": source.state_dict(), "iteration": 3}, path)
    assert load_weights(target, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.testing.assert_close(target(images()), source(images()), rtol=0, atol=0)


def test_load_weights_of_any_timm_model(tmp_path):
    source, target = timm.create_model("test_vit"), timm.create_model("test_vit")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(target, tmp_path / "weights.safetensors")
    torch.testing.assert_close(target.cls_token, source.cls_token)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: the checkpoint does not fit the model"):
        load_weights(timm.create_model("test_vit2"), tmp_path / "weights.safetensors")


class Payload:
    """What a malicious pickle would be."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def damage(path, kind, weights):
    if kind == "missing":
        return
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": Payload(path.parent / "ran")}, protocol=2))
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "nan":
        save_file({**weights, "norm.weight": torch.full((64,), float("nan"))}, path)
    elif kind == "partial":
        save_file({key: value for key, value in weights.items() if key != "norm.weight"}, path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "html":
        path.write_text("<!DOCTYPE html><html>Not found</html>")
    elif kind == "truncated":
        torch.save(weights, path) if path.suffix == ".pth" else save_file(weights, path)
        path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a.safetensors", "missing", "no such checkpoint file"),
        ("a.safetensors", "empty", "the file is empty"),
        ("a.safetensors", "html", "is a web page"),
        ("a.safetensors", "truncated", "not a readable safetensors file"),
        ("a.safetensors", "nan", r"norm\.weight hold NaN or Inf"),
        ("a.safetensors", "partial", r"1 missing \(norm\.weight\)"),
        ("a.pth", "html", "is a web page"),
        ("a.pth", "truncated", "not a readable PyTorch file"),
        ("a.pth", "pickle", "Nothing of it was run"),
        ("a.pth", "list", "holds a list, not a state dict"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, kind, message):
    path = tmp_path / name
    damage(path, kind, make().state_dict())
    model = make(seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(model, path)
    assert str(error.value).startswith(str(path))
    assert not (tmp_path / "ran").exists()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
