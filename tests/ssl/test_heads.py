"""Projection heads: scores are cosines, and their factors are the same scores."""

import pytest
import torch
import torch.nn.functional as F
from support.bounds import assert_near

from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.losses import DINOv2Loss
from timm_mvhybrid.ssl.masking import MaskedPatches
from timm_mvhybrid.ssl.prototype_scores import PrototypeScores
from timm_mvhybrid.ssl.student_teacher import ProjectionHead

SIZES = {"hidden_dim": 12, "bottleneck_dim": 6}


def make_head(**options):
    torch.manual_seed(0)
    head = ProjectionHead(8, 10, **SIZES, **options).double()
    torch.nn.init.normal_(head.mlp[0].weight)
    return head


def test_scores_are_cosines_of_bottleneck_and_prototypes():
    head = make_head()
    x = torch.randn(5, 8, dtype=torch.float64)
    hidden = F.gelu(F.linear(x, head.mlp[0].weight, head.mlp[0].bias))
    hidden = F.gelu(F.linear(hidden, head.mlp[2].weight, head.mlp[2].bias))
    bottleneck = F.linear(hidden, head.mlp[4].weight, head.mlp[4].bias)
    expected = F.cosine_similarity(bottleneck[:, None], head.last_layer[None], dim=-1)
    assert_near(head(x), expected, roundings=256)
    assert len(head.mlp) == 5


def test_the_length_of_a_prototype_does_not_count():
    head, x = make_head(), torch.randn(5, 8, dtype=torch.float64)
    before = head(x)
    with torch.no_grad():
        head.last_layer.mul_(7)
    assert_near(head(x), before, roundings=256)


def test_a_learned_length_starts_at_one_and_scales_the_scores():
    plain, head = make_head(), make_head(learn_gain=True)
    assert set(dict(head.named_parameters())) - set(dict(plain.named_parameters())) == {"last_layer_gain"}
    x = torch.randn(5, 8, dtype=torch.float64)
    assert_near(head(x), plain(x), roundings=256)
    with torch.no_grad():
        head.last_layer_gain[3] = 2.0
    factors = torch.ones(10, dtype=torch.float64)
    factors[3] = 2
    assert_near(head(x), plain(x) * factors, roundings=256)
    rows, prototypes = head(x, factored=True)
    assert_near(rows @ prototypes.T, head(x), roundings=256)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_factors_multiply_to_the_scores(num_layers):
    head, x = make_head(num_layers=num_layers), torch.randn(5, 8, dtype=torch.float64)
    rows, prototypes = head(x, factored=True)
    assert rows.shape == (5, 6)
    assert_near(rows @ prototypes.T, head(x), roundings=256)
    # a copy, which stays when the weights go
    assert prototypes.data_ptr() != head.last_layer.data_ptr()


@pytest.mark.parametrize("num_rows", [0, 7])
def test_loss_from_within_equals_the_loss_of_the_scores(num_rows):
    head, teacher = make_head(), torch.randn(num_rows, 10, dtype=torch.float64)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask.view(-1)[:num_rows] = True
    criterion = DINOv2Loss(10)
    masked = MaskedPatches.of(mask, torch.device("cpu"))
    targets = criterion.patch_targets(PrototypeScores(rows=teacher, chunk_rows=3), masked, 0.1)
    x = torch.randn(num_rows, 8, dtype=torch.float64)
    gradients = []
    for loss in (criterion.patch_loss(teacher, head(x), mask, 0.1), head(x, targets=targets)):
        gradients.append([loss.detach(), *torch.autograd.grad(loss, list(head.parameters()))])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_initial_weights_are_dinos():
    torch.manual_seed(0)
    head = ProjectionHead(200, 500, hidden_dim=300, bottleneck_dim=64)
    for layer in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (layer.bias == 0).all()
    assert head.last_layer.abs().max() <= 1 / 8
    assert head.last_layer.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_width_heads_and_autocast_normalise_in_float32(dtype):
    head = make_head().float()
    x = 1e-3 * torch.randn(5, 8)
    exact = head(x)
    with torch.autocast("cpu", dtype):
        scores = head(x)
        rows, prototypes = head(x, factored=True)
    assert scores.dtype == rows.dtype == prototypes.dtype == dtype
    for found in (scores, rows @ prototypes.T, head.to(dtype)(x.to(dtype))):
        torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.05)
    tiny = 1e-4 * x.to(dtype)
    assert torch.isfinite(head(tiny)).all()


@pytest.mark.parametrize("name", ["hidden_dim", "bottleneck_dim", "num_layers"])
def test_impossible_sizes_are_named(name):
    with pytest.raises(PretrainError, match=f"`{name}` is 0"):
        ProjectionHead(8, 10, **{**SIZES, name: 0})
