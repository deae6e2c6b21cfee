"""Whatever wrapped a backbone when it was saved, every way of loading finds the same weights, or says what is there."""

import itertools

import pytest
import timm
import torch
from safetensors.torch import save_file, save_model
from support.exports import perturbed

from timm_mvhybrid.export.training_checkpoint import convert, read_training_checkpoint
from timm_mvhybrid.models import CheckpointError, checkpoint_filter_fn, create_model, load_weights

MODEL = "test_mvhybrid"
OPTIONS = dict(depth=2)
OWN = perturbed(MODEL, 1, **OPTIONS).state_dict()
OTHER = perturbed(MODEL, 2, **OPTIONS).state_dict()
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def under(prefix, weights=OWN):
    return {prefix + name: value for name, value in weights.items()}


def by_load_weights(path):
    model = perturbed(MODEL, 9, **OPTIONS)
    load_weights(model, path)
    return model.state_dict()


def by_export(path):
    return convert(read_training_checkpoint(path), perturbed(MODEL, 9, **OPTIONS))


def by_checkpoint_path(path):
    return create_model(MODEL, checkpoint_path=str(path), **OPTIONS).state_dict()


def by_overlay(path):
    overlay = {"file": str(path)}
    return timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay=overlay, **OPTIONS).state_dict()


WAYS = (by_load_weights, by_export, by_checkpoint_path, by_overlay)


def assert_is(state, wanted=OWN):
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def wrapped_inside(weights, wrapper):
    """Names as a wrapper of every block, and of every mixer within it, gives them."""
    return {
        name.replace("blocks.0.", f"blocks.0.{wrapper}").replace("mixer.", f"mixer.{wrapper}"): value
        for name, value in weights.items()
    }


DINO = {
    **under("student.backbone.", OTHER),
    **under("teacher.backbone."),
    "teacher.dino_head.last_layer.weight": torch.zeros(2, 2),
    "dino_loss.center": torch.zeros(1, 2),
}
LAYOUTS = {
    "plain": OWN,
    "averaged by torch": torch.optim.swa_utils.AveragedModel(perturbed(MODEL, 1, **OPTIONS)).state_dict(),
    "compiled": torch.compile(perturbed(MODEL, 1, **OPTIONS)).state_dict(),
    "Lightning model": {"state_dict": under("model."), "epoch": 1, "global_step": 2},
    "Lightning net, compiled": {"state_dict": under("net._orig_mod.")},
    "Lightning encoder, deep": {"state_dict": under("module.model.encoder.vit.")},
    "Lightning with a head beside": {
        "state_dict": {
            **under("backbone."),
            "head.weight": torch.zeros(2, 2),
            "criterion.weight": torch.ones(3),
        }
    },
    "Lightning, averaged": {
        "state_dict": under("model."),
        "current_model_state": under("model.", OTHER),
        "averaging_state": {"n_averaged": torch.tensor(2)},
    },
    "Lightning, the same module by two names": {"state_dict": {**under("backbone."), **under("model.0.")}},
    "timm EMA": {"state_dict": under("module.", OTHER), "state_dict_ema": under("module.")},
    "MAE EMA": {"model": OTHER, "model_ema": OWN, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "ema_pytorch": {**under("online_model.", OTHER), **under("ema_model."), "step": torch.tensor(3)},
    "diffusers EMA": {"ema_model": OWN, "model": OTHER},
    "YOLO EMA": {"model": {"module": OTHER}, "ema": {"module": OWN, "updates": 3}},
    "EMA of a student": {
        "state_dict": {**under("student.", OTHER), "head.weight": torch.ones(2, 2)},
        "state_dict_ema": under("student."),
    },
    "lightly": {"state_dict": {**under("student_backbone.", OTHER), **under("teacher_backbone.")}},
    "BYOL": {"state_dict": {**under("backbone.", OTHER), **under("backbone_momentum.")}},
    "I-JEPA": {"encoder": under("module.", OTHER), "target_encoder": under("module.")},
    "DINO": {"student": under("module.backbone.", OTHER), "teacher": under("backbone."), "epoch": 3},
    "DINOv2": {"model": DINO, "iteration": 5},
    "DINOv2, FSDP": {
        "model": {
            name.replace("backbone.", "backbone._fsdp_wrapped_module."): value for name, value in DINO.items()
        }
    },
    "DINOv2, teacher alone": {"teacher": {**under("backbone."), "dino_head.mlp.0.weight": torch.zeros(2, 2)}},
    "DeepSpeed": {"module": OWN, "optimizer": None, "dp_world_size": 8},
    "FSDP, optimiser by names": {
        "model": OWN,
        "optimizer": {"state": {name: {"exp_avg": value} for name, value in OTHER.items()}},
    },
    "MMPretrain": {
        "state_dict": {**under("backbone."), "head.fc.weight": torch.ones(2, 2)},
        "meta": {"epoch": 2},
    },
    "Transformers' wrapper of timm": under("timm_model."),
    "open_clip": {"state_dict": {**under("module.visual.trunk."), "module.logit_scale": torch.tensor(1.0)}},
    "PEFT": under("base_model.model."),
    "a prefix that is not a module's": under("vit_"),
    "nested mappings": {"teacher": {"backbone": OWN}, "student": {"backbone": OTHER}},
    "parameters that need gradients": dict(perturbed(MODEL, 1, **OPTIONS).named_parameters()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_way_finds_the_weights(tmp_path, layout, way):
    torch.save(LAYOUTS[layout], tmp_path / "weights.pth")
    assert_is(way(tmp_path / "weights.pth"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model._orig_mod.", "timm_model."])
def test_safetensors_too(tmp_path, prefix, way):
    save_file(under(prefix), tmp_path / "model.safetensors")
    assert_is(way(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    "wrappers", [chosen for length in (1, 2, 3) for chosen in itertools.permutations(WRAPPERS, length)]
)
def test_wrappers_in_any_order_and_at_any_depth(wrappers):
    outside = "".join(wrappers)
    model = perturbed(MODEL, 9, **OPTIONS)
    for prefix in (outside, f"teacher.{outside}backbone.{outside}"):
        for weights in (OWN, wrapped_inside(OWN, outside)):
            assert_is(checkpoint_filter_fn(under(prefix, weights), model))


def test_a_wrapped_projection_does_not_leave_the_other_parameters_out():
    weights = {name.replace("patch_embed.", "patch_embed._orig_mod."): value for name, value in OWN.items()}
    assert_is(checkpoint_filter_fn(weights, perturbed(MODEL, 9, **OPTIONS)))


@pytest.mark.parametrize("branch", ["teacher", "student"])
@pytest.mark.parametrize("layout", ["DINOv2", "timm EMA", "lightly", "ema_pytorch", "nested mappings"])
def test_export_takes_the_branch_that_is_asked_for(tmp_path, layout, branch):
    torch.save(LAYOUTS[layout], tmp_path / "run.pth")
    found = read_training_checkpoint(tmp_path / "run.pth", branch)
    assert found.branch == branch
    assert_is(convert(found, perturbed(MODEL, 9, **OPTIONS)), OWN if branch == "teacher" else OTHER)


def test_a_student_alone_is_loaded_and_named(tmp_path):
    torch.save({"student": under("backbone.")}, tmp_path / "student.pth")
    assert_is(by_load_weights(tmp_path / "student.pth"))
    with pytest.raises(
        CheckpointError, match="has no teacher, only a student; take it with `branch='student'`"
    ):
        by_export(tmp_path / "student.pth")


def test_block_chunks_of_wrapped_blocks(tmp_path):
    source = perturbed("test_vit12", 1, mask_token=True)
    chunked = {}
    for name, value in source.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            index = int(parts[1])
            parts[1] = f"{index // 4}._fsdp_wrapped_module.{index}._checkpoint_wrapped_module"
        chunked[f"teacher.backbone._fsdp_wrapped_module.{'.'.join(parts)}"] = value
    target = perturbed("test_vit12", 2, mask_token=True)
    assert_is(checkpoint_filter_fn({"model": chunked}, target), source.state_dict())


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("wrap", [("", None), ("model.", "state_dict"), ("module.", "state_dict_ema")])
def test_models_of_timm_are_unwrapped_by_the_same_rules(tmp_path, name, wrap):
    prefix, container = wrap
    source, target = timm.create_model(name), timm.create_model(name)
    weights = under(prefix, source.state_dict())
    torch.save({container: weights, "epoch": 3} if container else weights, tmp_path / "weights.pth")
    load_weights(target, tmp_path / "weights.pth")
    assert_is(target.state_dict(), source.state_dict())


def test_names_that_safetensors_left_out_of_tied_weights(tmp_path):
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = perturbed(MODEL, 1, **OPTIONS)
            # it comes first in the alphabet, so that its name is kept and the backbone's is not
            self.final_norm = self.vit.norm

    save_model(Wrapper(), str(tmp_path / "model.safetensors"))
    for way in WAYS:
        assert_is(way(tmp_path / "model.safetensors"))


SHARDED = r"get_model_state_dict.*full_state_dict=True.*give its folder to 'timm-mvhybrid export'"
REFUSALS = {
    "FSDP, flat": (
        {"_flat_param": torch.zeros(9)},
        rf"FSDP's flattened parameters \('_flat_param'\).*{SHARDED}",
    ),
    "FSDP, flat blocks": (
        {
            "model": {
                **{name: value for name, value in under("backbone.").items() if ".blocks." not in name},
                "backbone.blocks.0._fsdp_wrapped_module._flat_param": torch.zeros(9),
            }
        },
        rf"FSDP's flattened parameters.*{SHARDED}",
    ),
    "ZeRO-3": (
        {"module": {name: torch.zeros(0) for name in OWN}},
        r"is empty, as DeepSpeed's ZeRO-3.*zero_to_fp32\.py",
    ),
    "two backbones": (
        {"state_dict": {**under("encoder_q.", OTHER), **under("encoder_k.")}},
        r"holds 2 backbones, under 'state_dict\.encoder_k\.' and 'state_dict\.encoder_q\.'.*without its prefix.*removeprefix",
    ),
    "twice inside": ({**OWN, "norm.module.weight": OTHER["norm.weight"]}, "holds 'norm.weight' twice"),
    "names of another library": (
        {"embeddings.patch_embeddings.projection.weight": torch.zeros(2)},
        r"none of its 1 tensors is a backbone's patch projection.*'embeddings\.patch_embeddings",
    ),
    "nothing": ({"epoch": 3}, "holds no tensors at all"),
    "another backbone under a prefix": (
        {"state_dict": under("model.", perturbed(MODEL, 1, depth=3).state_dict())},
        r"under 'state_dict\.model\.', the checkpoint does not fit the model",
    ),
    "a part": (
        {"model": {name: value for name, value in under("net.").items() if "patch_embed" not in name}},
        r"2 missing \(patch_embed\.proj\.weight, patch_embed\.proj\.bias\)",
    ),
}


@pytest.mark.parametrize("way", [by_load_weights, by_export])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_loaded_is_named_with_its_own_remedy(tmp_path, case, way):
    content, message = REFUSALS[case]
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        way(tmp_path / "weights.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'weights.pth'}: ")
    architecture = "does not fit the model" in str(caught.value)
    assert ("Create the model" in str(caught.value)) == architecture


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model-00002-of-00003.safetensors", "is shard 2 of 3 of the weights; save them in one file"),
        ("__0_0.distcp", "is one shard of a checkpoint of torch.distributed.checkpoint; give its folder to"),
    ],
)
def test_one_shard_of_several(tmp_path, name, message):
    save_file(OWN, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        by_load_weights(tmp_path / name)
    save_file(OWN, tmp_path / "model-00001-of-00001.safetensors")
    assert_is(by_load_weights(tmp_path / "model-00001-of-00001.safetensors"))


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder; give the file of the weights in it"):
        by_load_weights(tmp_path)
