"""The whole objective, of crops, for each kind of backbone."""

from dataclasses import replace

import pytest
import torch
from support.bounds import assert_near

from timm_mvhybrid.models import TEST_MODEL_NAMES
from timm_mvhybrid.ssl.config import HeadConfig
from timm_mvhybrid.ssl.distillation import compute_losses
from timm_mvhybrid.ssl.losses import DINOv2Loss
from timm_mvhybrid.ssl.masking import masks_of_step
from timm_mvhybrid.ssl.student_teacher import build_pair, update_teacher
from timm_mvhybrid.training.optimizer import (
    apply_schedules,
    clip_gradients,
    make_adamw,
    parameter_groups,
)

HEAD = HeadConfig(num_prototypes=12, hidden_dim=16, bottleneck_dim=8, learn_gain=False)
STOCK = "vit_tiny_patch16_224"
ARGUMENTS = {
    STOCK: {"img_size": 128, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "test_vit12": {"depth": 2},
}
MODELS = [*TEST_MODEL_NAMES, STOCK]


def build(model="test_mvhybrid", separate_ibot_head=True, **options):
    torch.manual_seed(0)
    head = replace(HEAD, separate_ibot_head=separate_ibot_head)
    return build_pair(model, head, model_arguments=ARGUMENTS.get(model), **options)


def make_batch(num_images=2, num_local=2, dtype=torch.float32):
    random = torch.Generator().manual_seed(1)
    crops = torch.randn(2 * num_images, 3, 64, 64, generator=random, dtype=dtype)
    local = torch.randn(num_local * num_images, 3, 32, 32, generator=random, dtype=dtype)
    return crops, local, masks_of_step((4, 4), positions=range(num_images), num_images=num_images, share=1.0)


@pytest.mark.parametrize("chunk_rows", [0, 3])
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_of_the_student_learns(model, chunk_rows):
    student, teacher = build(model)
    losses = compute_losses(student, teacher, DINOv2Loss(12, ibot_chunk_rows=chunk_rows), *make_batch(), 0.05)
    assert list(losses.parts) == ["dino_local", "dino_global", "koleo", "ibot", "total"]
    assert all(part.isfinite() for part in losses.parts.values())
    assert losses.parts["ibot"] > 0
    losses.total.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_chunked_and_whole_patches_are_the_same_objective(centering, separate):
    student, teacher = build("test_vit12", separate_ibot_head=separate)
    student.double()
    teacher.double()
    whole, chunked = (DINOv2Loss(12, centering, ibot_chunk_rows=rows) for rows in (0, 3))
    batch = make_batch(dtype=torch.float64)
    for _ in range(2):
        results = []
        for criterion in (whole, chunked):
            student.zero_grad()
            losses = compute_losses(student, teacher, criterion, *batch, 0.05)
            losses.total.backward()
            results.append((losses.parts, {name: p.grad for name, p in student.named_parameters()}))
        for found, expected in zip(results[1], results[0], strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-10)


def test_parts_are_those_of_whole_scores_given_to_the_public_loss():
    student, teacher = build("test_vit12")
    crops, local, mask = make_batch(num_images=3)
    student.eval()
    found = compute_losses(student, teacher, DINOv2Loss(12, ibot_chunk_rows=4), crops, local, mask, 0.05)
    tokens, taught = student.backbone.forward_features(crops, mask), teacher.backbone.forward_features(crops)
    expected = DINOv2Loss(12)(
        teacher_cls=teacher.dino_head(taught[:, 0]),
        student_global_cls=student.dino_head(tokens[:, 0]),
        student_local_cls=student.dino_head(student.backbone.forward_features(local)[:, 0]),
        mask=mask,
        teacher_patch=teacher.ibot_head(taught[:, 1:][mask]),
        student_patch=student.ibot_head(tokens[:, 1:][mask]),
        student_feature=tokens[:, 0],
        teacher_temp=0.05,
    )
    for name, value in expected.items():
        torch.testing.assert_close(found.parts[name], value, rtol=1e-5, atol=1e-6)
    assert_near(found.teacher_features, taught[:, 0], roundings=2048)
    assert_near(found.student_output.class_features, tokens[:, 0], roundings=2048)
    targets = found.class_targets.softmax(dim=1)
    assert_near(targets.sum(dim=1), torch.ones(6), roundings=2048)
    for watched in (targets, found.teacher_features):
        assert not watched.requires_grad


@pytest.mark.parametrize("model", ["test_mvhybrid", STOCK])
def test_nothing_masked_and_no_local_crops_still_reach_every_parameter(model):
    student, teacher = build(model)
    crops, local, mask = make_batch()
    losses = compute_losses(
        student, teacher, DINOv2Loss(12, ibot_chunk_rows=3), crops, local[:0], torch.zeros_like(mask), 0.05
    )
    losses.total.backward()
    assert losses.parts["ibot"] == losses.parts["dino_local"] == 0
    for name, parameter in student.named_parameters():
        # processes with masked patches wait for this one's gradients
        assert parameter.grad is not None, name
        if name.startswith("ibot_head") or name == "backbone.mask_token":
            assert (parameter.grad == 0).all(), name


@pytest.mark.parametrize("chunk_rows", [0, 3])
def test_autocast_stays_close_and_losses_stay_in_float32(chunk_rows):
    student, teacher = build()
    batch = make_batch()
    exact = compute_losses(student, teacher, DINOv2Loss(12, ibot_chunk_rows=chunk_rows), *batch, 0.06).parts
    with torch.autocast("cpu", torch.bfloat16):
        found = compute_losses(
            student, teacher, DINOv2Loss(12, ibot_chunk_rows=chunk_rows), *batch, 0.06
        ).parts
    found["total"].backward()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert abs(value - exact[name]) < 0.05 * exact["total"], name
    assert all(parameter.grad.dtype == torch.float32 for parameter in student.parameters())


def test_a_few_steps_on_one_batch_lower_the_loss():
    student, teacher = build()
    criterion = DINOv2Loss(12, ibot_chunk_rows=4)
    optimizer = make_adamw(parameter_groups(student))
    batch = make_batch(num_images=4)
    totals = []
    for _ in range(8):
        losses = compute_losses(student, teacher, criterion, *batch, 0.06)
        losses.total.backward()
        clip_gradients(student)
        apply_schedules(optimizer, lr=2e-3, weight_decay=0.04, last_layer_lr=2e-3)
        optimizer.step()
        optimizer.zero_grad()
        update_teacher(student, teacher, 0.99)
        totals.append(losses.total.item())
    assert totals[-1] < totals[0] - 1
