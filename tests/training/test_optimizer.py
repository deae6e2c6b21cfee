"""Parameter groups, schedules applied to them, and clipping."""

import math
from dataclasses import replace

import pytest
import torch

from timm_mvhybrid.ssl.config import HeadConfig
from timm_mvhybrid.ssl.student_teacher import build_pair
from timm_mvhybrid.training.optimizer import (
    apply_schedules,
    clip_gradients,
    make_adamw,
    parameter_groups,
)

HEAD = HeadConfig(num_prototypes=12, hidden_dim=16, bottleneck_dim=8, learn_gain=False)


def build(model="test_mvhybrid", separate_ibot_head=True, **options):
    torch.manual_seed(0)
    head = replace(HEAD, separate_ibot_head=separate_ibot_head)
    return build_pair(model, head, **options)[0]


def by_name(student, groups):
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    found = {names[id(parameter)]: group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return found


DECAYS = {
    "test_mvhybrid": {
        "patch_embed.proj.weight": 1,
        "patch_embed.proj.bias": 0,
        "cls_token": 0,
        "mask_token": 0,
        "blocks.0.norm1.weight": 0,
        "blocks.0.mixer.in_proj.weight": 1,
        "blocks.0.mixer.dt_proj.bias": 0,
        "blocks.0.mixer.A_log": "ssm",
        "blocks.0.mixer.D": "ssm",
        "blocks.0.channel_mixer.complex_weight_1": "ssm",
        "blocks.0.channel_mixer.complex_bias_2": "ssm",
        "blocks.3.attn.qkv.weight": 1,
        "blocks.3.attn.qkv.bias": 0,
        "norm.weight": 0,
    },
    "test_hydra_einfft": {
        "blocks.0.mixer.A_log": "ssm",
        "blocks.0.mixer.D": "ssm",
        "blocks.0.mixer.dt_bias": "ssm",
        "blocks.0.mixer.norm.weight": 0,
        "blocks.0.mixer.fc_D.weight": 1,
        "blocks.0.mixer.conv1d.weight": 1,
    },
    "test_vim_einfft": {
        "pos_embed": 0,
        "blocks.0.mixer.A_b_log": "ssm",
        "blocks.0.mixer.D_b": "ssm",
        "blocks.0.norm2.weight": 0,
    },
    "test_vit12": {"pos_embed": 0, "blocks.11.ls1.gamma": 0, "blocks.11.mlp.fc1.weight": 1},
}


@pytest.mark.parametrize("decay_ssm", [True, False])
@pytest.mark.parametrize("model", list(DECAYS))
def test_weight_decay_spares_vectors_tokens_and_scans_if_told(model, decay_ssm):
    student = build(model)
    groups = by_name(student, parameter_groups(student, decay_ssm=decay_ssm))
    assert groups.keys() == dict(student.named_parameters()).keys()
    for name, expected in DECAYS[model].items():
        wanted = decay_ssm if expected == "ssm" else expected
        assert groups[f"backbone.{name}"]["wd_multiplier"] == float(wanted), name
    assert groups["dino_head.mlp.0.weight"]["wd_multiplier"] == 1
    assert groups["dino_head.mlp.0.bias"]["wd_multiplier"] == 0
    assert groups["ibot_head.last_layer"]["wd_multiplier"] == 1


def test_every_scan_parameter_is_known():
    """A parameter that is kept in float32 belongs to a scan; none may decay unnoticed."""
    complex_pairs = {"model_arguments": {"ssm_kwargs": {"eigenvalues": "complex"}}}
    for model, arguments in (
        ("test_mvhybrid", {}),
        ("test_hydra_einfft", {}),
        ("test_vim_einfft", {}),
        ("test_mvhybrid", complex_pairs),
        ("test_vim_einfft", complex_pairs),
    ):
        student = build(model, **arguments)
        groups = by_name(student, parameter_groups(student, decay_ssm=False))
        for prefix, module in student.named_modules():
            own = dict(module.named_parameters(recurse=False))
            for name in set(getattr(module, "float32_parameters", ())) & set(own):
                assert groups[f"{prefix}.{name}"]["wd_multiplier"] == 0, name


def test_learning_rates_fall_towards_the_input():
    student = build()
    groups = by_name(student, parameter_groups(student, layer_decay=0.5, patch_embed_lr_multiplier=0.2))
    expected = {
        "backbone.patch_embed.proj.weight": 0.2 * 0.5**5,
        "backbone.cls_token": 0.5**5,
        "backbone.mask_token": 0.5**5,
        "backbone.blocks.0.mixer.A_log": 0.5**4,
        "backbone.blocks.3.attn.proj.weight": 0.5,
        "backbone.norm.weight": 1.0,
        "dino_head.mlp.0.weight": 1.0,
        "ibot_head.last_layer": 1.0,
    }
    for name, multiplier in expected.items():
        assert groups[name]["lr_multiplier"] == pytest.approx(multiplier), name


def test_groups_are_few_where_nothing_differs():
    student = build()
    groups = parameter_groups(student)
    assert len(groups) == 5
    last = {name for name, group in by_name(student, groups).items() if group["is_last_layer"]}
    assert last == {"dino_head.last_layer", "ibot_head.last_layer"}


def test_wrapped_and_frozen_parameters_are_sorted_too():
    student = build("test_vit12")
    student.backbone.cls_token.requires_grad_(False)
    renamed = {f"_orig_mod.{name}": value for name, value in student.named_parameters()}

    class Wrapped:
        backbone = student.backbone

        @staticmethod
        def named_parameters():
            return (
                (n.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."), v)
                for n, v in renamed.items()
            )

    sizes = [
        sorted(
            (len(g["params"]), g["lr_multiplier"], g["wd_multiplier"])
            for g in parameter_groups(x, layer_decay=0.5)
        )
        for x in (student, Wrapped)
    ]
    assert sizes[0] == sizes[1]
    assert sum(size for size, _, _ in sizes[0]) == len(renamed) - 1


def test_schedules_reach_the_groups_and_a_frozen_last_layer_stays():
    student = build()
    optimizer = make_adamw(parameter_groups(student))
    apply_schedules(optimizer, lr=1e-2, weight_decay=0.1, last_layer_lr=0.0)
    groups = by_name(student, optimizer.param_groups)
    assert groups["backbone.patch_embed.proj.weight"]["lr"] == pytest.approx(2e-3)
    assert groups["backbone.patch_embed.proj.weight"]["weight_decay"] == 0.1
    assert groups["backbone.norm.weight"]["weight_decay"] == 0
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name for name, value in student.named_parameters() if not torch.equal(value, before[name])}
    assert before.keys() - moved == {"dino_head.last_layer", "ibot_head.last_layer"}
    apply_schedules(optimizer, lr=1e-2, weight_decay=0.1, last_layer_lr=1e-2)
    optimizer.step()
    assert not torch.equal(student.dino_head.last_layer, before["dino_head.last_layer"])


@pytest.mark.parametrize("max_norm", [3.0, 0.0, None])
def test_each_submodule_is_clipped_by_itself(max_norm):
    student = build()
    for scale, child in enumerate((student.backbone, student.dino_head, student.ibot_head)):
        for parameter in child.parameters():
            # norms of 0, 10 and 20
            parameter.grad = torch.full_like(
                parameter, 10 * scale / math.sqrt(sum(p.numel() for p in child.parameters()))
            )
    norms = clip_gradients(student, max_norm)
    assert {name: round(norm.item(), 3) for name, norm in norms.items()} == {
        "backbone": 0,
        "dino_head": 10,
        "ibot_head": 20,
    }
    for child, norm in ((student.dino_head, 10.0), (student.ibot_head, 20.0)):
        found = torch.stack([parameter.grad.norm() for parameter in child.parameters()]).norm()
        assert found.item() == pytest.approx(max_norm or norm, rel=1e-4)


def test_gradients_that_are_not_finite_show_in_the_norm():
    student = build(separate_ibot_head=False)
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    student.backbone.norm.weight.grad[0] = math.nan
    norms = clip_gradients(student)
    assert norms.keys() == {"backbone", "dino_head"}
    assert norms["backbone"].isnan()
    assert norms["dino_head"].isfinite()
