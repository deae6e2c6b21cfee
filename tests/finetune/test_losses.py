"""Contrast and masked regression, against other people's code and in cases that must not be NaN."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from timm_mvhybrid.finetune import FinetuneError, info_nce, masked_mse
from timm_mvhybrid.finetune.losses import masked_squares

GOLDEN = Path(__file__).parents[1] / "golden" / "finetuning" / "losses.npz"


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(np.asarray(x)) for name, x in np.load(GOLDEN, allow_pickle=False).items()}


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_info_nce_is_open_clips(golden):
    image, pathway = golden["image"].requires_grad_(), golden["pathway"].requires_grad_()
    logit_scale = (1 / golden["temperature"]).requires_grad_()
    loss = info_nce(image, pathway, 1 / logit_scale)
    near(loss, golden["info_nce"])
    near(info_nce(image, pathway), golden["info_nce"])
    for found, name in zip(
        torch.autograd.grad(loss, [image, pathway, logit_scale]),
        ("grad_image", "grad_pathway", "grad_logit_scale"),
        strict=True,
    ):
        near(found, golden[name])


def test_info_nce_knows_its_chance_level_and_ignores_lengths():
    assert info_nce(torch.ones(8, 3), torch.ones(8, 3)).item() == pytest.approx(math.log(8))
    x, y = torch.randn(2, 8, 3, dtype=torch.float64)
    near(info_nce(5 * x, y / 7), info_nce(x, y))
    near(info_nce(x, y), info_nce(y, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert info_nce(x.bfloat16(), y.bfloat16()).dtype == torch.float32


def test_masked_mse_is_the_golden(golden):
    prediction = golden["prediction"].requires_grad_()
    loss = masked_mse(prediction, golden["target"], golden["measured"], golden["mean"], golden["std"])
    near(loss, golden["masked_standardised_mse"])
    loss.backward()
    near(prediction.grad, golden["grad_prediction"])


def test_masked_mse_without_any_target_is_0_and_without_nan():
    prediction = torch.randn(3, 4, requires_grad=True)
    target = torch.full((3, 4), torch.nan)
    for std in (torch.ones(4), torch.zeros(4)):
        loss = masked_mse(prediction, target, torch.zeros(3, 4, dtype=torch.bool), torch.zeros(4), std)
        assert loss.item() == 0
        (grad,) = torch.autograd.grad(loss, prediction)
        assert not grad.any()
    measured = torch.zeros(3, 4, dtype=torch.bool)
    measured[0, 0], target[0, 0] = True, 2.0
    loss = masked_mse(prediction, target, measured, torch.ones(4), torch.ones(4))
    assert loss.item() == pytest.approx((prediction[0, 0].item() - 1) ** 2)
    (grad,) = torch.autograd.grad(loss, prediction)
    assert torch.isfinite(grad).all()
    assert grad.count_nonzero() == 1


def test_a_constant_gene_has_the_standardised_value_0():
    loss = masked_mse(
        torch.zeros(2, 1),
        torch.tensor([[3.0], [4.0]]),
        torch.ones(2, 1, dtype=torch.bool),
        torch.tensor([3.0]),
        torch.zeros(1),
    )
    assert loss.item() == 0


def test_parts_of_a_batch_add_up(golden):
    inputs = [golden[name] for name in ("prediction", "target", "measured")]
    statistics = golden["mean"], golden["std"]
    parts = [masked_squares(*(x[rows] for x in inputs), *statistics) for rows in (slice(5), slice(5, None))]
    whole = sum(part[0] for part in parts) / sum(part[1] for part in parts)
    near(whole, golden["masked_standardised_mse"])


def test_what_does_not_fit_is_refused():
    x, m, s = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(3)
    for arguments, name in (
        ((x, x[:1], m, s, s), "target"),
        ((x, x, m[:, :2], s, s), "measured"),
        ((x, x, m, s[:2], s), "mean"),
        ((x, x, m, s, s[:1]), "std"),
        ((x, x, m.float(), s, s), "measured"),
    ):
        with pytest.raises(FinetuneError, match=f"`{name}`"):
            masked_mse(*arguments)
    with pytest.raises(FinetuneError, match="`temperature` is 0"):
        info_nce(x, x, 0)
    for other in (x[:1], x[:, :2], x[0]):
        with pytest.raises(FinetuneError, match="`image` has shape"):
            info_nce(x, other)
