"""A position embedding keeps the grid it was trained on: save → load → the same features, on long grids too."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.exports import exported, perturbed

from timm_mvhybrid.export.training_checkpoint import convert, read_training_checkpoint
from timm_mvhybrid.hub import export
from timm_mvhybrid.models import CheckpointError, checkpoint_filter_fn, create_model, load_weights
from timm_mvhybrid.weights.fingerprint import synthetic_image
from timm_mvhybrid.weights.position_grid import (
    grid_from_text,
    resample_position,
    resample_with_older_timm,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "weights"
# as many patches as the registered 128 × 128, and two grids of other numbers
SIZES = [(64, 256), (256, 64), (32, 96), (128, 128)]
# every kind of model that has a position embedding, and every place that prefix tokens can have beside it
MODELS = {
    "test_vit12": {"depth": 2},
    "test_vim_einfft": {"depth": 2},
    "vit12_small_patch16_256": {"depth": 1, "embed_dim": 48},
    "vit24_small_patch16_256": {"depth": 2, "embed_dim": 48},
    "vim_einfft_small_patch16_256": {"depth": 1, "embed_dim": 48},
    "test_vit12, registers": {"depth": 2, "reg_tokens": 3},
    "test_vit12, no prefix embedded": {"depth": 2, "reg_tokens": 3, "no_embed_class": True},
    "test_mvhybrid": {"depth": 2, "pos_embed": "learn"},
}


def make(kind, size, seed=1):
    return perturbed(kind.split(",")[0], seed, **MODELS[kind], img_size=size)


def tokens(model, size):
    with torch.no_grad():
        return model.forward_features(synthetic_image(*size))


def plain(source, folder, kind, size):
    save_file(source.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def pickled(source, folder, kind, size):
    torch.save(
        {"teacher": {"module.backbone." + k: v for k, v in source.state_dict().items()}}, folder / "w.pth"
    )
    return folder / "w.pth"


def our_export(source, folder, kind, size):
    path = plain(source, folder, kind, size)
    args = {**MODELS[kind], "img_size": list(size)}
    export(path, kind.split(",")[0], folder / "exported", model_args=args)
    return folder / "exported" / "model.safetensors"


def by_load_weights(path, kind, size):
    model = make(kind, size, 9)
    load_weights(model, path)
    return model


def by_checkpoint_path(path, kind, size):
    options = {**MODELS[kind], "img_size": size}
    return create_model(kind.split(",")[0], checkpoint_path=str(path), **options)


def by_overlay(path, kind, size):
    options = {**MODELS[kind], "img_size": size, "pretrained_cfg_overlay": {"file": str(path)}}
    return timm.create_model(kind.split(",")[0], pretrained=True, **options)


def by_convert(path, kind, size):
    model = make(kind, size, 9)
    model.load_state_dict(convert(read_training_checkpoint(path), model))
    return model


@pytest.mark.parametrize(
    ("write", "size"),
    [*((plain, size) for size in SIZES), (pickled, SIZES[0]), (our_export, SIZES[0])],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("kind", MODELS)
def test_save_and_load_gives_the_same_features(tmp_path, write, kind, size):
    source = make(kind, size)
    path = write(source, tmp_path, kind, size)
    ways = [by_load_weights, by_checkpoint_path, by_overlay, by_convert]
    loaded = [way(path, kind, size) for way in ways]
    if write is our_export:
        loaded.append(timm.create_model(f"local-dir:{path.parent}", pretrained=True))
    expected = tokens(source, size)
    for model in loaded:
        assert torch.equal(model.pos_embed, source.pos_embed)
        torch.testing.assert_close(tokens(model.eval(), size), expected, rtol=0, atol=0)


@pytest.mark.parametrize("own", [(128, 128), (64, 256), (96, 96)], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_a_grid_that_the_file_states_is_resampled_onto_any_other(tmp_path, kind, own):
    size = (256, 64)
    source = make(kind, size)
    path = our_export(source, tmp_path, kind, size)
    num_prefix = 0 if source.no_embed_class else source.num_prefix_tokens
    expected = resample_with_older_timm(
        source.pos_embed.detach(), [own[0] // 16, own[1] // 16], [16, 4], num_prefix
    )
    assert not torch.equal(expected, source.pos_embed)
    # without the configuration beside it as well
    (path.parent / "config.json").unlink()
    for way in (by_load_weights, by_checkpoint_path, by_overlay, by_convert):
        torch.testing.assert_close(way(path, kind, own).pos_embed, torch.nn.Parameter(expected))


def test_a_configuration_states_the_grid_of_a_file_that_does_not(tmp_path):
    """As exports of versions before 0.2 do."""
    source = make("test_vit12", (64, 256))
    path = our_export(source, tmp_path, "test_vit12", (64, 256))
    save_file(load_file(path), path)
    config = json.loads((path.parent / "config.json").read_text())
    config["timm_mvhybrid"]["weights"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "config.json").write_text(json.dumps(config))
    expected = resample_position(source.pos_embed.detach(), [8, 8], [4, 16], 1)
    square = [
        by_load_weights(path, "test_vit12", (128, 128)),
        by_convert(path, "test_vit12", (128, 128)),
        timm.create_model(f"local-dir:{path.parent}", pretrained=True, img_size=(128, 128)),
    ]
    for model in square:
        torch.testing.assert_close(model.pos_embed, torch.nn.Parameter(expected))


def test_the_caller_states_the_grid_by_an_input_size(tmp_path):
    source = make("test_vit12", (64, 256))
    path = plain(source, tmp_path, "test_vit12", (64, 256))
    for stated, grid in (((3, 64, 256), [4, 16]), ((3, 128, 128), [8, 8])):
        overlay = {"file": str(path), "input_size": stated}
        model = timm.create_model(
            "test_vit12", pretrained=True, pretrained_cfg_overlay=overlay, depth=2, img_size=(256, 64)
        )
        expected = resample_position(source.pos_embed.detach(), [16, 4], grid, 1)
        torch.testing.assert_close(model.pos_embed, torch.nn.Parameter(expected))


def test_a_file_that_contradicts_itself_is_refused(tmp_path):
    state = make("test_vit12", (64, 256)).state_dict()
    for text, message in (
        ("[4, 8]", "states a grid of 4 × 8 patches, but its pos_embed covers 64"),
        ("square", "its metadata state 'square' as patch_grid, which is not rows and columns"),
    ):
        save_file(state, tmp_path / "a.safetensors", metadata={"patch_grid": text})
        for way in (by_load_weights, by_convert):
            with pytest.raises(CheckpointError, match=message) as caught:
                way(tmp_path / "a.safetensors", "test_vit12", (64, 256))
            assert str(caught.value).startswith(f"{tmp_path / 'a.safetensors'}: ")


@pytest.mark.parametrize(
    "text", ["", "[4]", "[4, 16, 1]", "[4.0, 16]", "[0, 16]", "[-4, -16]", "null", '["4", 16]', "[true, 4]"]
)
def test_what_is_not_a_grid(text):
    with pytest.raises(ValueError, match="not rows and columns"):
        grid_from_text(text)


@pytest.mark.parametrize("name", ["test_vit12", "test_mvhybrid"])
def test_exports_state_their_grid(tmp_path, name):
    folder, _ = exported(tmp_path, name, model_args={"img_size": [64, 256]})
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata()["patch_grid"] == "[4, 16]"


OLD = {"depth": 1, "embed_dim": 8, "num_heads": 1, "img_size": (32, 128)}


@pytest.mark.parametrize("source", ["exported", "teacher.safetensors", "step.tar.gz"])
def test_files_of_the_first_version_are_read(tmp_path, source):
    path = GOLDEN / source
    if source.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path = tmp_path / "step_00000002"
    model = timm.create_model("test_vit12", num_classes=0, **OLD).eval()
    model.load_state_dict(convert(read_training_checkpoint(path), model))
    models = [model]
    if path.is_file():
        models.append(create_model("test_vit12", checkpoint_path=str(path), **OLD))
    if source == "exported":
        models.append(timm.create_model(f"local-dir:{path}", pretrained=True))
    expected = load_file(GOLDEN / "tokens.safetensors")["tokens"]
    for model in models:
        # sums of at most 768 summands in another order
        torch.testing.assert_close(tokens(model.eval(), (32, 128)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["test_vit12", "test_vim_einfft", "test_vit12, no prefix embedded"])
@pytest.mark.parametrize(
    ("size", "other"), [((64, 256), (128, 128)), ((128, 128), (64, 256)), ((128, 128), (96, 160))]
)
def test_other_sizes_of_image_resample_however_they_come(kind, size, other):
    """Through forward, through set_input_size, and by loading: one function of the two grids."""
    model = make(kind, size)
    by_forward = tokens(model, other)
    target = make(kind, other, 9)
    state = checkpoint_filter_fn(model.state_dict(), target, grid=(size[0] // 16, size[1] // 16))
    target.load_state_dict(state)
    model.pos_embed.requires_grad_(False)
    model.set_input_size(other)
    assert not model.pos_embed.requires_grad
    torch.testing.assert_close(model.pos_embed.data, target.pos_embed.data)
    torch.testing.assert_close(tokens(model, other), by_forward, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens(target, other), by_forward, rtol=1e-5, atol=1e-5)
    position = make(kind, size).pos_embed
    assert target.pos_embed.shape != position.shape or not torch.allclose(
        target.pos_embed, position, atol=1e-2
    )


@pytest.mark.parametrize(
    ("old", "new"), [([4, 16], [8, 8]), ([8, 8], [4, 16]), ([3, 5], [7, 4]), ([4, 4], [4, 4])]
)
@pytest.mark.parametrize("num_prefix", [0, 1, 4])
def test_resampling_is_the_same_by_every_timm(old, new, num_prefix):
    position = torch.randn(1, num_prefix + old[0] * old[1], 6, generator=torch.Generator().manual_seed(0))
    found = resample_with_older_timm(position, new, old, num_prefix)
    patches = position[:, num_prefix:].reshape(1, *old, 6).permute(0, 3, 1, 2)
    if old != new:
        patches = torch.nn.functional.interpolate(patches, size=new, mode="bicubic", antialias=True)
    expected = torch.cat([position[:, :num_prefix], patches.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(resample_position(position, new, old, num_prefix), expected)
