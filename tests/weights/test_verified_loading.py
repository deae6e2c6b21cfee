"""Whatever is wrong with an exported file is one error that names file, cause and remedy, by every way of loading."""

import json
import pickle
import re
from pathlib import Path

import numpy
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.exports import exported

from timm_mvhybrid.models import CheckpointError, create_model, load_weights
from timm_mvhybrid.models.hybrid_vision_transformer import HybridVisionTransformer


class Payload:
    """What a malicious pickle would be."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def rewrite(change, keep_metadata=True):
    """Writes the tensors again as a program would that knows nothing of digests."""

    def damage(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        change(tensors)
        save_file(tensors, path, metadata=metadata if keep_metadata else None)
        forget_sha256(folder)

    return damage


def forget_sha256(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["timm_mvhybrid"]
    (folder / "config.json").write_text(json.dumps(config))


def content(data):
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    forget_sha256(folder)


def flip(folder, known=True):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    if not known:
        forget_sha256(folder)


def another_model(folder):
    other, _ = exported(folder.parent / "other", "test_vit12")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    forget_sha256(folder)


def malicious(folder):
    payload = pickle.dumps({"norm.weight": Payload(folder / "ran")}, protocol=2)
    (folder / "model.safetensors").write_bytes(payload)
    forget_sha256(folder)


def put_nan(tensors):
    tensors["blocks.1.norm1.weight"][3] = float("nan")


def put_inf(tensors):
    tensors["norm.bias"][0] = float("-inf")


def reshape(tensors):
    tensors["norm.weight"] = tensors["norm.weight"][:-1].clone()


def add(tensors):
    tensors["blocks.9.norm1.weight"] = torch.zeros(64)


def scramble(tensors):
    tensors["blocks.3.mlp.fc1.weight"] *= -1


DAMAGES = {
    "truncated": (truncate, "not a readable safetensors file, perhaps cut short"),
    "empty": (content(b""), "the file is empty"),
    "web page": (content(b"<!DOCTYPE html><html>Log in</html>"), "is a web page"),
    "git-lfs pointer": (content(b"version https://git-lfs.github.com/spec/v1\n"), "is a git-lfs pointer"),
    "bit flipped, sha256 known": (flip, "its sha256 is"),
    "bit flipped, sha256 unknown": (
        lambda folder: flip(folder, known=False),
        "its tensors are not those that were exported",
    ),
    "NaN": (rewrite(put_nan, keep_metadata=False), "blocks.1.norm1.weight hold NaN or Inf"),
    "Inf": (rewrite(put_inf, keep_metadata=False), "norm.bias hold NaN or Inf"),
    "wrong architecture": (another_model, "was exported from test_vit12"),
    "missing key": (
        rewrite(lambda tensors: tensors.pop("blocks.1.mixer.A_log"), keep_metadata=False),
        "1 missing (blocks.1.mixer.A_log)",
    ),
    "extra key": (rewrite(add, keep_metadata=False), "1 unexpected (blocks.9.norm1.weight)"),
    "wrong shape": (rewrite(reshape, keep_metadata=False), "norm.weight (63,) instead of (64,)"),
    "malicious pickle": (malicious, "nothing of it was run"),
}


def by_folder(folder, **options):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options)


def by_overlay(folder, **options):
    overlay = {"file": str(folder / "model.safetensors")}
    return timm.create_model("test_mvhybrid", pretrained=True, pretrained_cfg_overlay=overlay, **options)


def by_checkpoint_path(folder, **options):
    return create_model("test_mvhybrid", checkpoint_path=folder / "model.safetensors", **options)


def by_timms_checkpoint_path(folder, **options):
    return timm.create_model("test_mvhybrid", checkpoint_path=str(folder / "model.safetensors"), **options)


def by_load_weights(folder, **options):
    model = timm.create_model("test_mvhybrid", **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        load_weights(model, folder / "model.safetensors")
    except CheckpointError:
        assert same(model.state_dict(), before)
        raise
    return model


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


WAYS = [
    (by_folder, {}),
    (by_folder, {"num_classes": 5}),
    (by_folder, {"features_only": True}),
    (by_overlay, {}),
    (by_overlay, {"num_classes": 5, "in_chans": 1}),
    (by_checkpoint_path, {}),
    (by_load_weights, {}),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def folder(sound, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for path in sound[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(("way", "options"), [*WAYS, (by_timms_checkpoint_path, {})])
def test_every_way_loads_the_same_weights(sound, way, options):
    folder, source = sound
    model = way(folder, **options)
    features_only = "features_only" in options
    state = (model.model if features_only else model).state_dict()
    adapted = {"patch_embed.proj.weight"} if "in_chans" in options else set()
    # intermediate features have no final norm
    adapted |= {"norm.weight", "norm.bias"} if features_only else set()
    for name, value in source.state_dict().items():
        assert name in adapted or torch.equal(state[name], value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("way", "options"), WAYS)
def test_damaged_weights_are_one_clear_error_and_no_model(folder, damage, way, options):
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        way(folder, **options)
    text = str(caught.value)
    assert text.startswith(f"{folder / 'model.safetensors'}: ")
    assert message in text
    assert "\n" not in text
    assert re.search(
        "copy, download or export it again|Create the model that the checkpoint was trained as", text
    )
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "damage", ["NaN", "Inf", "wrong architecture", "missing key", "extra key", "wrong shape"]
)
def test_what_timm_reads_by_itself_is_proved_to_fit_and_to_be_finite(folder, damage):
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        by_timms_checkpoint_path(folder)
    # the file's own name and metadata never reach the model
    assert (message if damage != "wrong architecture" else "the checkpoint does not fit the model") in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    model = create_model("test_mvhybrid")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        model.load_state_dict(load_file(folder / "model.safetensors"))
    assert same(model.state_dict(), before)


def test_timm_runs_no_pickle_for_checkpoint_path(folder):
    malicious(folder)
    (folder / "model.safetensors").rename(folder / "weights.pth")
    with pytest.raises(RuntimeError, match="weights_only=True"):
        timm.create_model("test_mvhybrid", checkpoint_path=str(folder / "weights.pth"))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        create_model("test_mvhybrid", checkpoint_path=str(folder / "weights.pth"))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("create", [timm.create_model, create_model])
def test_a_numpy_file_is_refused_whoever_opens_it(tmp_path, create):
    path = tmp_path / "weights.npz"
    numpy.savez(path, embedding=numpy.zeros(3))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        create("test_mvhybrid", checkpoint_path=str(path))
    overlay = {"file": str(path), "custom_load": True}
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        create("test_mvhybrid", pretrained=True, pretrained_cfg_overlay=overlay)


def test_own_names_load_as_in_torch(folder):
    source, model = create_model("test_mvhybrid"), create_model("test_mvhybrid")
    result = model.load_state_dict(source.state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert same(model.state_dict(), source.state_dict())
    empty = create_model("test_mvhybrid", device="meta")
    empty.load_state_dict(source.state_dict(), assign=True)
    assert same(empty.state_dict(), source.state_dict())
    empty.load_state_dict(create_model("test_mvhybrid", device="meta").state_dict(), assign=True)
    assert empty.norm.weight.is_meta
    part = {"norm.weight": torch.full((64,), float("nan"))}
    assert "norm.bias" in model.load_state_dict(part, strict=False).missing_keys
    assert torch.isnan(model.norm.weight).all()
    # what holds a model loads it as torch does, too
    holder = torch.nn.Sequential(model)
    holder.load_state_dict({f"0.{key}": value for key, value in source.state_dict().items()})
    assert same(model.state_dict(), source.state_dict())


def test_a_training_checkpoint_in_memory_is_converted():
    source, model = create_model("test_mvhybrid"), create_model("test_mvhybrid")
    teacher = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    model.load_state_dict({"teacher": teacher, "step": 3})
    assert same(model.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text(""), "not a readable configuration, empty or damaged"),
        (lambda path: path.write_text(path.read_text()[:-40]), "not a readable configuration"),
        (lambda path: path.write_bytes(b"\xff\xfe{"), "not a readable configuration"),
        (lambda path: path.write_text("[]"), "names no architecture"),
        (
            lambda path: path.write_text('{"architecture": "test_mvhybrid", "model_args": 3}'),
            "timm configuration",
        ),
        (
            lambda path: path.write_text(path.read_text().replace('"crop_pct"', '"crop_pzt"')),
            "holds something that timm does not know",
        ),
    ],
)
def test_damaged_configurations_are_one_clear_error(folder, spoil, message):
    spoil(folder / "config.json")
    with pytest.raises(CheckpointError) as caught:
        create_model(f"local-dir:{folder}", pretrained=True)
    assert str(folder) in str(caught.value)
    assert message in str(caught.value)
    assert "copy, download or export it again" in str(caught.value)


def test_a_missing_folder_is_named_by_us_and_left_to_timm_by_its_own_way(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        create_model(f"local-dir:{tmp_path / 'nowhere'}", pretrained=True)
    with pytest.raises(FileNotFoundError) as caught:
        by_folder(tmp_path / "nowhere")
    assert not isinstance(caught.value, CheckpointError)


def test_a_file_without_configuration_is_verified_by_its_own_digest(folder):
    (folder / "config.json").unlink()
    by_overlay(folder)
    flip_last = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(flip_last[:-1] + bytes([flip_last[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its tensors are not those that were exported"):
        by_overlay(folder)


def test_a_folder_of_pickles_is_read_without_running_them(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "ran"), protocol=2))
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin: holds more than tensors.*Nothing of it was run"
    ):
        by_folder(folder)
    assert not (folder / "ran").exists()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        by_folder(folder)


def test_weights_in_memory_are_checked_too():
    state = timm.create_model("test_mvhybrid").state_dict()
    state["norm.weight"] = torch.full((64,), float("nan"))
    with pytest.raises(CheckpointError, match="hold NaN"):
        timm.create_model("test_mvhybrid", pretrained=True, pretrained_cfg_overlay={"state_dict": state})


def test_a_model_that_computes_something_else_is_refused(folder, monkeypatch):
    forward = HybridVisionTransformer.forward_features
    monkeypatch.setattr(
        HybridVisionTransformer, "forward_features", lambda self, x, *rest: forward(self, x.flip(-1), *rest)
    )
    for way in (by_folder, by_overlay, by_checkpoint_path, by_load_weights):
        with pytest.raises(CheckpointError, match=r"computes other features .*relative error"):
            way(folder)
    with pytest.raises(CheckpointError, match="computes other features"):
        by_folder(folder, features_only=True)


def test_an_option_that_changes_the_function_is_refused(folder):
    with pytest.raises(CheckpointError, match="without num_heads, act_layer or the like"):
        by_folder(folder, num_heads=4)


@pytest.mark.parametrize(
    "options",
    [
        {"in_chans": 1},
        {"img_size": 96},
        {"patch_size": 8},
        {"dtype": torch.bfloat16},
        {"global_pool": "avg"},
        {"drop_path_rate": 0.5},
        {"mask_token": True},
    ],
    ids=str,
)
def test_options_that_are_meant_to_change_the_model_load(folder, options):
    assert by_folder(folder, **options).weights_sha256 is not None


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
def test_nothing_is_computed_on_the_meta_device(folder):
    assert by_folder(folder, device="meta").norm.weight.is_meta
    with torch.device("meta"):
        assert by_folder(folder).norm.weight.is_meta


def test_a_damaged_fingerprint_is_an_error(folder):
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    save_file(load_file(path), path, metadata={**metadata, "fingerprint": metadata["fingerprint"][:-9]})
    forget_sha256(folder)
    with pytest.raises(CheckpointError, match="its metadata hold not a fingerprint"):
        by_folder(folder)


def test_loading_leaves_mode_and_generator_alone(folder):
    torch.manual_seed(3)
    model = timm.create_model("test_mvhybrid")
    expected = torch.rand(2)
    torch.manual_seed(3)
    model = timm.create_model("test_mvhybrid").train()
    load_weights(model, folder / "model.safetensors")
    assert torch.equal(torch.rand(2), expected)
    assert all(module.training for module in model.modules())


def test_other_models_of_timm_are_loaded_by_timm(tmp_path):
    source = timm.create_model("test_vit")
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    for create in (timm.create_model, create_model):
        model = create("test_vit", checkpoint_path=tmp_path / "vit.safetensors")
        assert same(model.state_dict(), source.state_dict())
        with pytest.raises(FileNotFoundError):
            create("test_vit", checkpoint_path=str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(("found", "wanted"), [(3, 1), (3, 4), (3, 8), (4, 8), (4, 3), (4, 1)])
def test_equal_channels_give_equal_features_after_adaptation(tmp_path, found, wanted):
    source = timm.create_model("test_vit12", in_chans=found).eval()
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, path)
    adapted = timm.create_model("test_vit12", in_chans=wanted, checkpoint_path=str(path)).eval()
    image = torch.rand(1, 1, *source.patch_embed.img_size)
    with torch.no_grad():
        # one channel takes the sum of the weights, others their mean
        expected = source(image.expand(-1, found, -1, -1))
        actual = adapted(image.expand(-1, wanted, -1, -1))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
