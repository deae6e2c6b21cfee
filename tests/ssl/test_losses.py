"""DINOv2's loss against goldens of its published code, and where that code or lightly's fails."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks.memory import peak_extra_bytes
from lightly.loss import IBOTPatchLoss, KoLeoLoss
from safetensors import safe_open
from support.bounds import assert_near, gamma
from support.goldens import relative_error

from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl import lightly_losses
from timm_mvhybrid.ssl.losses import DINOv2Loss
from timm_mvhybrid.ssl.masking import MaskedPatches
from timm_mvhybrid.ssl.prototype_loss import prototype_cross_entropy
from timm_mvhybrid.ssl.prototype_scores import PrototypeScores

GOLDENS = Path(__file__).parent.parent / "golden" / "pretraining"
PARTS = ["dino_local", "dino_global", "koleo", "ibot", "total"]


def load(name):
    with safe_open(GOLDENS / f"dinov2_losses_{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["meta"]), {key: file.get_tensor(key) for key in file.keys()}


def strip(values, prefix):
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def prepare(inputs, dtype):
    """Casts a step's inputs and makes the student's want gradients."""
    prepared = {}
    for name, value in inputs.items():
        prepared[name] = value.clone() if value.dtype == torch.bool else value.detach().to(dtype, copy=True)
        prepared[name].requires_grad_(name.startswith("student"))
    return prepared


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
@pytest.mark.parametrize(("name", "dtype"), [(f"{n}_{d}", d) for n in "ab" for d in ("f64", "f32")])
def test_values_targets_and_gradients_equal_the_goldens(name, dtype, centering):
    meta, values = load(name)
    tolerance = 1e-6 if dtype == "f64" and centering == "centering" else 1e-5
    criterion = DINOv2Loss(meta["prototypes"], centering)
    for step in range(meta["steps"]):
        inputs = strip(values, f"step{step}.input.")
        inputs = prepare(inputs, {"f64": torch.float64, "f32": torch.float32}[dtype])
        found = criterion.teacher_probabilities(
            inputs["teacher_cls"], inputs["teacher_patch"], meta["teacher_temp"]
        )
        losses = criterion(**inputs, teacher_temp=meta["teacher_temp"])
        assert list(losses) == PARTS
        losses["total"].backward()
        found.update(losses)
        expected = strip(values, f"step{step}.{centering}.output.")
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert relative_error(found[key].detach(), value) < tolerance, key
        gradients = strip(values, f"step{step}.{centering}.grad.")
        assert gradients.keys() == {key for key in inputs if key.startswith("student")}
        for key, value in gradients.items():
            assert relative_error(inputs[key].grad, value) < tolerance, key


def make_inputs(dtype=torch.float64, *, num_images=3, num_local=3, prototypes=11, num_masked=5, seed=0):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=random)

    mask = torch.zeros(2 * num_images, 9, dtype=torch.bool)
    mask[0, :2] = True
    mask[3, 3 : 3 + num_masked - 2] = True
    if num_masked == 0:
        mask[:] = False
    inputs = {
        "teacher_cls": draw(2 * num_images, prototypes),
        "student_global_cls": draw(2 * num_images, prototypes),
        "student_local_cls": draw(num_local * num_images, prototypes),
        "mask": mask,
        "teacher_patch": draw(num_masked, prototypes),
        "student_patch": draw(num_masked, prototypes),
        "student_feature": draw(2 * num_images, 7),
    }
    return prepare(inputs, dtype)


def cross_entropy(target, scores):
    return -(target * torch.log_softmax(scores / 0.1, dim=-1)).sum(dim=-1)


@pytest.mark.parametrize("num_local", [0, 1, 2, 5])
def test_class_losses_sum_over_their_pairs(num_local):
    inputs = make_inputs(num_local=num_local)
    losses = DINOv2Loss(11, "centering")(**inputs, teacher_temp=0.3)
    teacher = torch.softmax(inputs["teacher_cls"] / 0.3, dim=-1).chunk(2)
    student = inputs["student_global_cls"].chunk(2)
    scale = 1 / (2 * num_local + 2)
    between = cross_entropy(teacher[0], student[1]).mean() + cross_entropy(teacher[1], student[0]).mean()
    assert_near(losses["dino_global"], scale * between, roundings=256)
    local = sum(
        (
            cross_entropy(target, crop).mean()
            for target in teacher
            for crop in inputs["student_local_cls"].unflatten(0, (num_local, 3))
        ),
        start=torch.zeros((), dtype=torch.float64),
    )
    assert_near(losses["dino_local"], scale * local, roundings=256)
    assert_near(losses["total"], sum(losses[name] for name in PARTS[:-1]), roundings=256)


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 64])
def test_chunked_patches_equal_whole_scores(centering, chunk_rows):
    torch.manual_seed(0)
    mask = torch.rand(6, 12) < 0.3
    masked = MaskedPatches.of(mask, torch.device("cpu"))
    rows, prototypes = int(mask.sum()), 11
    whole = DINOv2Loss(prototypes, centering)
    chunked = DINOv2Loss(prototypes, centering, ibot_chunk_rows=chunk_rows)
    for _ in range(2):
        teacher, teacher_w, student, student_w = (
            torch.randn(n, 4, dtype=torch.float64) for n in (rows, prototypes, rows, prototypes)
        )
        leaves = [(student.clone().requires_grad_(), student_w.clone().requires_grad_()) for _ in range(2)]
        expected = whole.patch_loss(teacher @ teacher_w.T, leaves[0][0] @ leaves[0][1].T, mask, 0.2)
        scores = PrototypeScores(rows=teacher, prototypes=teacher_w, chunk_rows=chunk_rows)
        found = prototype_cross_entropy(*leaves[1], chunked.patch_targets(scores, masked, 0.2))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        (3 * expected).backward()
        (3 * found).backward()
        for value, reference in zip(leaves[1], leaves[0], strict=True):
            torch.testing.assert_close(value.grad, reference.grad, rtol=1e-10, atol=1e-13)


def test_chunked_gradients_are_the_derivative():
    torch.manual_seed(0)
    masked = MaskedPatches.of(torch.ones(2, 2, dtype=torch.bool), torch.device("cpu"))
    criterion = DINOv2Loss(5, ibot_chunk_rows=3)
    scores = PrototypeScores(
        rows=torch.randn(4, 3).double(), prototypes=torch.randn(5, 3).double(), chunk_rows=3
    )
    targets = criterion.patch_targets(scores, masked, 0.2)
    leaves = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5)]
    assert torch.autograd.gradcheck(lambda *x: prototype_cross_entropy(*x, targets), leaves)


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_batches_without_masked_patches_are_harmless(centering):
    criterion = DINOv2Loss(11, centering)
    criterion(**make_inputs(seed=1), teacher_temp=0.05)
    before = {key: value.clone() for key, value in criterion.state_dict().items()}
    inputs = make_inputs(num_masked=0)
    losses = criterion(**inputs, teacher_temp=0.05)
    losses["total"].backward()
    assert losses["ibot"] == 0
    assert inputs["student_patch"].grad.shape == (0, 11)
    assert torch.isfinite(losses["total"])
    assert torch.isfinite(inputs["student_global_cls"].grad).all()
    if centering == "centering":
        after = criterion.state_dict()["patch_centering.center"]
        torch.testing.assert_close(after, before["patch_centering.center"], rtol=0, atol=0)
    # nothing of the empty batch is left in any centre
    after = criterion(**make_inputs(seed=2), teacher_temp=0.05)["ibot"]
    assert torch.isfinite(after)
    masked = MaskedPatches.of(inputs["mask"], torch.device("cpu"))
    scores = PrototypeScores(rows=torch.empty(0, 3), prototypes=torch.randn(11, 3), chunk_rows=4)
    leaves = [torch.empty(0, 3, requires_grad=True), torch.randn(11, 3, requires_grad=True)]
    loss = prototype_cross_entropy(*leaves, criterion.patch_targets(scores, masked, 0.05))
    loss.backward()
    assert loss == 0
    assert [leaf.grad.abs().sum().item() for leaf in leaves] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_half_width_scores_are_computed_in_float32(dtype, centering):
    exact, half = DINOv2Loss(11, centering), DINOv2Loss(11, centering)
    for step in range(2):
        narrow = make_inputs(dtype, seed=step)
        wide = prepare(narrow, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=step == 1):
            found = half(**narrow, teacher_temp=0.05)
        expected = exact(**wide, teacher_temp=0.05)
        found["total"].backward()
        expected["total"].backward()
        for name in PARTS:
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)
        for name in ("student_patch", "student_feature"):
            assert narrow[name].grad.dtype == dtype
            # what float32 rounds otherwise may round to the next number of the dtype
            gradient, ulp = wide[name].grad, torch.finfo(dtype).eps
            bound = (
                2 * gamma(256, torch.float32) * gradient.abs().max().item() + torch.finfo(dtype).tiny * ulp
            )
            torch.testing.assert_close(narrow[name].grad, gradient.to(dtype), rtol=ulp, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_chunked_patches_keep_small_gradients_in_half_width(dtype):
    """65,536 probabilities of 1.5e-5 times a row's weight are below float16's smallest number."""
    torch.manual_seed(0)
    mask = torch.ones(64, 16, dtype=torch.bool)
    masked = MaskedPatches.of(mask, torch.device("cpu"))
    wide = [F.normalize(torch.randn(n, 8), dim=1) for n in (1024, 4096, 1024, 4096)]
    narrow = [x.to(dtype) for x in wide]
    gradients = []
    for teacher, teacher_w, student, student_w in ([x.float() for x in narrow], narrow):
        leaves = [student.clone().requires_grad_(), student_w.clone().requires_grad_()]
        scores = PrototypeScores(rows=teacher, prototypes=teacher_w, chunk_rows=512)
        targets = DINOv2Loss(4096).patch_targets(scores, masked, 0.06)
        loss = prototype_cross_entropy(*leaves, targets)
        assert loss.dtype == torch.float32
        # what a loss scale does, so that the result survives the cast to half width
        (2.0**10 * loss).backward()
        gradients.append([leaf.grad.float() for leaf in leaves])
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        assert ((found - expected).norm() / expected.norm()) < 0.03


def test_chunked_patches_follow_autocast():
    torch.manual_seed(0)
    masked = MaskedPatches.of(torch.ones(4, 4, dtype=torch.bool), torch.device("cpu"))
    x = [F.normalize(torch.randn(n, 8), dim=1) for n in (16, 32, 16, 32)]
    leaves = [x[2].requires_grad_(), x[3].requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        scores = PrototypeScores(rows=x[0], prototypes=x[1], chunk_rows=5)
        targets = DINOv2Loss(32).patch_targets(scores, masked, 0.06)
        found = prototype_cross_entropy(*leaves, targets)
    found.backward()
    exact = prototype_cross_entropy(*leaves, targets)
    assert found.dtype == leaves[0].grad.dtype == torch.float32
    # the products were rounded, the sums were not
    assert 1e-6 < abs(found - exact) / exact < 1e-2


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_one_prototype_leaves_nothing_to_learn(centering):
    losses = DINOv2Loss(1, centering)(**make_inputs(prototypes=1), teacher_temp=0.05)
    assert [losses[name].item() for name in ("dino_local", "dino_global", "ibot")] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_koleo_of_equal_features_is_finite(dtype):
    inputs = make_inputs(dtype)
    with torch.no_grad():
        inputs["student_feature"][1] = inputs["student_feature"][0]
    losses = DINOv2Loss(11)(**inputs, teacher_temp=0.05)
    losses["koleo"].backward()
    assert torch.isfinite(losses["koleo"])
    assert not inputs["student_feature"].grad.isnan().any()


def test_koleo_is_lightlys_of_each_global_crop():
    inputs = make_inputs()
    losses = DINOv2Loss(11, regularizer_weight=0.3)(**inputs, teacher_temp=0.05)
    crops = inputs["student_feature"].chunk(2)
    assert_near(losses["koleo"], 0.3 * sum(KoLeoLoss()(crop) for crop in crops), roundings=256)


def test_kernel_density_is_the_mean_log_density():
    inputs = make_inputs()
    losses = DINOv2Loss(11, regularizer="kde", regularizer_weight=0.5, kde_concentration=3.0)(
        **inputs, teacher_temp=0.05
    )
    assert list(losses) == ["dino_local", "dino_global", "kde", "ibot", "total"]
    expected = 0.0
    for crop in inputs["student_feature"].detach().chunk(2):
        z = [row / row.norm() for row in crop]
        densities = [sum(math.exp(3 * float(a @ b)) for b in z) / len(z) for a in z]
        expected += sum(map(math.log, densities)) / len(z)
    assert losses["kde"].item() == pytest.approx(0.5 * expected)


def test_kernel_density_falls_as_features_spread():
    crops = torch.tensor([[[1.0, 0.0], [1.0, 0.1]], [[1.0, 0.0], [-1.0, 0.1]]], requires_grad=True)
    zeros = torch.zeros(4, 3)
    criterion = DINOv2Loss(3, regularizer="kde")
    close, far = (
        criterion.combine(zeros, zeros, zeros[:0], torch.cat([crop, crop]), torch.zeros(()))["kde"]
        for crop in crops
    )
    assert far < close - 0.1


def test_weights_scale_their_parts_and_no_regularizer_has_no_part():
    inputs = make_inputs()
    plain = DINOv2Loss(11)(**inputs, teacher_temp=0.05)
    heavy = DINOv2Loss(11, dino_weight=2.0, ibot_weight=3.0, regularizer="none")(**inputs, teacher_temp=0.05)
    assert list(heavy) == ["dino_local", "dino_global", "ibot", "total"]
    for name, factor in (("dino_local", 2), ("dino_global", 2), ("ibot", 3)):
        assert_near(heavy[name], factor * plain[name], roundings=256)


def test_only_the_running_mean_has_a_state_and_it_restores_exactly():
    assert DINOv2Loss(11, "sinkhorn_knopp").state_dict() == {}
    first, second = DINOv2Loss(11, "centering"), DINOv2Loss(11, "centering")
    first(**make_inputs(torch.float32), teacher_temp=0.05)
    state = first.state_dict()
    assert {key: value.shape for key, value in state.items()} == {
        "class_centering.center": (11,),
        "patch_centering.center": (11,),
    }
    second.load_state_dict(state)
    inputs = make_inputs(torch.float32, seed=1)
    found, expected = (criterion(**inputs, teacher_temp=0.05)["total"] for criterion in (second, first))
    assert torch.equal(found, expected)
    assert not torch.equal(expected, DINOv2Loss(11, "centering")(**inputs, teacher_temp=0.05)["total"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centering": "mean"}, "`centering` is 'mean'; it must be one of sinkhorn_knopp, centering"),
        ({"regularizer": "vicreg"}, "`regularizer` is 'vicreg'"),
        ({"regularizer_scope": "node"}, "`regularizer_scope` is 'node'"),
        ({"num_prototypes": 0}, "`num_prototypes` is 0"),
        ({"ibot_chunk_rows": -1}, "`ibot_chunk_rows` is -1"),
        ({"student_temp": 0.0}, r"`student_temp` is 0\.0"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(PretrainError, match=message):
        DINOv2Loss(**{"num_prototypes": 5, **options})


@pytest.mark.parametrize(
    ("name", "rows"),
    [("student_global_cls", 5), ("student_local_cls", 8), ("student_feature", 5), ("student_patch", 4)],
)
def test_inputs_of_other_images_are_refused(name, rows):
    inputs = make_inputs()
    inputs[name] = inputs[name][:rows]
    with pytest.raises(PretrainError, match=name):
        DINOv2Loss(11)(**inputs, teacher_temp=0.05)


def test_a_missing_lightly_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly.loss.dino_loss", None)
    spec = importlib.util.spec_from_file_location(f"{lightly_losses.__name__}_again", lightly_losses.__file__)
    with pytest.raises(PretrainError, match=r"pip install 'timm-mvhybrid\[pretrain\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_chunks_need_a_fraction_of_the_memory():
    """Of one tensor of masked patches × prototypes: at most half, where lightly's loss on whole scores takes three."""
    rows, prototypes, width = 2048, 8192, 64
    torch.manual_seed(0)
    teacher, teacher_w, student, student_w = (
        F.normalize(torch.randn(n, width), dim=1) for n in (rows, prototypes, rows, prototypes)
    )
    leaves = [student.requires_grad_(), student_w.requires_grad_()]
    mask = torch.ones(8, rows // 8, dtype=torch.bool)
    masked = MaskedPatches.of(mask, torch.device("cpu"))
    criterion = DINOv2Loss(prototypes, ibot_chunk_rows=128)

    def chunked():
        scores = PrototypeScores(rows=teacher, prototypes=teacher_w, chunk_rows=128)
        targets = criterion.patch_targets(scores, masked, 0.05)
        prototype_cross_entropy(*leaves, targets).backward()

    def whole():
        IBOTPatchLoss(prototypes)(
            teacher @ teacher_w.T, leaves[0] @ leaves[1].T, mask.unsqueeze(1)
        ).backward()

    one = rows * prototypes * 4
    assert peak_extra_bytes(chunked) <= 0.5 * one
    assert peak_extra_bytes(whole) >= 3 * one
