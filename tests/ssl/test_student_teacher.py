"""Student and teacher of our models and of timm's own."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.bounds import assert_near

from timm_mvhybrid.models import TEST_MODEL_NAMES, CheckpointError
from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.config import HeadConfig
from timm_mvhybrid.ssl.masking import MaskedPatches
from timm_mvhybrid.ssl.student_teacher import build_pair, update_teacher

HEAD = HeadConfig(num_prototypes=12, hidden_dim=16, bottleneck_dim=8, learn_gain=False)
STOCK = "vit_tiny_patch16_224"
ARGUMENTS = {
    STOCK: {"img_size": 128, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "test_vit12": {"depth": 2},
}
MODELS = [*TEST_MODEL_NAMES, STOCK]


def build(model, separate_ibot_head=True, **options):
    torch.manual_seed(0)
    head = replace(HEAD, separate_ibot_head=separate_ibot_head)
    return build_pair(model, head, model_arguments=ARGUMENTS.get(model), **options)


def make_mask():
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5:8] = True
    return mask, MaskedPatches.of(mask, torch.device("cpu"))


@pytest.mark.parametrize("model", MODELS)
def test_teacher_starts_as_the_student_and_learns_nothing_by_gradient(model):
    student, teacher = build(model, drop_path_rate=0.3)
    assert student.state_dict().keys() == teacher.state_dict().keys()
    for name, value in student.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name]), name
        assert value.data_ptr() != teacher.state_dict()[name].data_ptr()
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert student.training
    assert not teacher.training
    names = [type(module).__name__ for module in student.modules()]
    assert "DropPath" in names
    assert "DropPath" not in [type(module).__name__ for module in teacher.modules()]


@pytest.mark.parametrize("model", MODELS)
def test_backbone_loads_strictly_into_timm(model):
    student, _ = build(model)
    state = {
        name.removeprefix("backbone."): value
        for name, value in student.state_dict().items()
        if name.startswith("backbone.")
    }
    assert state.pop("mask_token").shape == (1, student.backbone.embed_dim)
    timm.create_model(model, num_classes=0, **ARGUMENTS.get(model, {})).load_state_dict(state, strict=True)


@pytest.mark.parametrize("model", MODELS)
def test_features_are_those_of_the_bare_model(model):
    _, teacher = build(model)
    crops = torch.randn(2, 3, 64, 64)
    _, masked = make_mask()
    found = teacher(crops, masked=masked)
    tokens = teacher.backbone.forward_features(crops)
    prefix = teacher.backbone.num_prefix_tokens
    torch.testing.assert_close(found.class_features, tokens[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(found.class_scores, teacher.dino_head(tokens[:, 0]), rtol=0, atol=0)
    patches = tokens[:, prefix:].flatten(0, 1)[5:8]
    torch.testing.assert_close(found.patch_scores, teacher.ibot_head(patches), rtol=0, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_hidden_patches_are_not_seen_and_the_others_are(model):
    student, _ = build(model)
    student.eval()
    torch.nn.init.normal_(student.backbone.mask_token)
    crops = torch.randn(2, 3, 64, 64)
    changed, seen = crops.clone(), crops.clone()
    # patches 5 to 7 are rows 16 to 31, columns 16 to 63
    changed[0, :, 16:32, 16:] = 0
    seen[0, :, :16] = 0
    _, masked = make_mask()

    def features(images, hide=True):
        return student(images, masked=masked, hide=hide).class_features

    torch.testing.assert_close(features(changed), features(crops), rtol=0, atol=0)
    assert not torch.allclose(features(seen), features(crops))
    assert not torch.allclose(features(crops), features(crops, hide=False))
    # the second image hides nothing
    assert_near(features(crops)[1], features(crops, hide=False)[1], roundings=2048)
    assert_near(features(crops, hide=False), student.backbone.forward_features(crops)[:, 0], roundings=2048)


def test_local_crops_are_scored_behind_the_global_ones():
    student, _ = build("test_vit12")
    crops, local = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 32, 32)
    _, masked = make_mask()
    found = student(crops, local, masked=masked)
    assert_near(found.class_scores[:2], student(crops, masked=masked).class_scores, roundings=2048)
    expected = student.dino_head(student.backbone.forward_features(local)[:, 0])
    assert_near(found.class_scores[2:], expected, roundings=2048)
    assert student(crops, local[:0], masked=masked).class_scores.shape == (2, 12)


def test_one_head_can_serve_both_tokens():
    student, teacher = build("test_vit12", separate_ibot_head=False)
    assert student.ibot_head is None
    assert not any(name.startswith("ibot_head") for name in teacher.state_dict())
    crops = torch.randn(2, 3, 64, 64)
    _, masked = make_mask()
    patches = masked.select(teacher.backbone.forward_features(crops)[:, 1:])
    found = teacher(crops, masked=masked).patch_scores
    assert_near(found, teacher.dino_head(patches), roundings=2048)


def test_teacher_moves_by_its_momentum():
    student, teacher = build("test_mvhybrid")
    for network in (student, teacher):
        network.register_buffer("counter", torch.zeros(3))
    student.dino_head.bfloat16()
    teacher.dino_head.bfloat16()
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
        student.counter.fill_(5)
    update_teacher(student, teacher, 0.75)
    for (name, value), current in zip(teacher.named_parameters(), student.parameters(), strict=True):
        rtol = 0.02 if value.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * current, rtol=rtol, atol=rtol)
        assert not torch.equal(value, before[name]), name
    assert teacher.counter.tolist() == [5, 5, 5]
    held = [value.clone() for value in teacher.parameters()]
    update_teacher(student, teacher, 1.0)
    assert all(map(torch.equal, held, teacher.parameters()))


@pytest.mark.parametrize("model", ["test_hydra_hybrid", STOCK])
def test_training_can_start_from_a_weights_file(model, tmp_path):
    torch.manual_seed(1)
    bare = timm.create_model(model, num_classes=0, **ARGUMENTS.get(model, {}))
    save_file(bare.state_dict(), tmp_path / "model.safetensors")
    student, teacher = build(model, checkpoint=tmp_path / "model.safetensors")
    for name, value in bare.state_dict().items():
        assert torch.equal(student.backbone.state_dict()[name], value), name
        assert torch.equal(teacher.backbone.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        build(model, checkpoint=tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("resnet10t", {}, "resnet10t cannot be made with.*VisionTransformers"),
        ("nothing_like_it", {}, "timm has no model 'nothing_like_it'"),
        ("test_mvhybrid", {"class_token": False, "global_pool": "avg"}, "has no class token"),
        (STOCK, {"global_pool": "avg", "depth": 1}, "normalises after its pooling"),
        (STOCK, {"num_classes": 5, "depth": 1}, "has a classifier"),
        (STOCK, {"global_pool": "map", "depth": 1}, "pools by attention"),
        ("test_vit12", {"patch_drop_rate": 0.5}, "drops patches"),
        ("test_vit12", {"no_such_argument": 1}, "no_such_argument"),
    ],
)
def test_models_that_cannot_be_trained_so_are_refused(model, arguments, message):
    with pytest.raises(PretrainError, match=message):
        build_pair(model, HEAD, model_arguments=arguments)
