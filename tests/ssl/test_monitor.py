import math

import pytest
import torch

from timm_mvhybrid.ssl.monitor import (
    CollapseAlarm,
    FeatureWindow,
    feature_std,
    prototype_usage,
    rankme,
    teacher_entropy,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_rankme_counts_equal_directions(generator):
    directions, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64))
    for rank in (1, 5, 16):
        assert rankme(directions[:rank]) == pytest.approx(rank, rel=1e-4)


def test_rankme_follows_its_formula():
    features = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]))
    shares = torch.tensor([4.0, 2.0, 1.0, 1.0]) / 8
    expected = math.exp(-sum(p * math.log(p) for p in shares.tolist()))
    assert rankme(features) == pytest.approx(expected, rel=1e-5)
    assert rankme(features * 1000) == pytest.approx(expected, rel=1e-5)


def test_rankme_of_what_has_no_rank():
    assert rankme(torch.zeros(4, 3)) == 0
    assert math.isnan(rankme(torch.tensor([[1.0, math.nan]])))
    assert rankme(torch.full((8, 4), 1000.0, dtype=torch.float16)) == pytest.approx(1, abs=1e-4)


def test_feature_std_is_0_for_one_point_and_1_for_the_sphere(generator):
    assert feature_std(torch.randn(1, 32, generator=generator).repeat(10, 1)) == pytest.approx(0, abs=1e-6)
    for dim in (8, 512):
        sphere = torch.randn(4000, dim, generator=generator)
        assert feature_std(sphere) == pytest.approx(1, abs=0.02)
        assert feature_std(sphere * 100) == pytest.approx(1, abs=0.02)
    assert math.isnan(feature_std(torch.full((2, 2), math.nan)))


def test_entropy_and_usage_between_their_ends():
    sharp, same, uniform = torch.eye(4), torch.eye(4)[:1].repeat(4, 1), torch.full((4, 4), 0.25)
    assert (teacher_entropy(sharp), prototype_usage(sharp)) == pytest.approx((0, 1))
    assert (teacher_entropy(same), prototype_usage(same)) == pytest.approx((0, 0.25))
    assert (teacher_entropy(uniform), prototype_usage(uniform)) == pytest.approx((1, 1))
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert (teacher_entropy(half), prototype_usage(half)) == pytest.approx((0.5, 0.5))


def test_the_alarm_waits_for_a_row_and_speaks_once():
    alarm = CollapseAlarm(min_feature_std=0.1, min_rankme=2.0, num_checks=3)
    low, well = {"feature_std": 0.01, "rankme": 10.0}, {"feature_std": 0.5, "rankme": 10.0}
    spoken = [alarm.check(step, **values) for step, values in enumerate([low, low, well, low, low, low, low])]
    assert [message is not None for message in spoken] == [False] * 5 + [True, False]
    assert "step 5" in spoken[5]
    assert "0.01" in spoken[5]
    assert [alarm.check(9, **well), *(alarm.check(9, **low) for _ in range(3))][-1] is not None


@pytest.mark.parametrize(
    "values", [{"feature_std": 0.5, "rankme": 1.5}, {"feature_std": math.nan, "rankme": math.nan}]
)
def test_the_alarm_hears_rank_and_nan(values):
    assert CollapseAlarm(min_rankme=2.0, num_checks=1).check(1, **values) is not None


def test_a_window_keeps_the_last_features(generator):
    features = torch.randn(10, 4, generator=generator)
    window = FeatureWindow(num_rows=6)
    assert window.summary() == {}
    for part in features.split([3, 4, 3]):
        window.add(part)
    expected = {"feature_std": feature_std(features[4:]), "rankme": rankme(features[4:])}
    assert window.summary() == pytest.approx(expected)
    window.add(features)
    assert window.summary() == pytest.approx(expected)


def test_a_window_holds_no_graph():
    window = FeatureWindow()
    features = torch.ones(2, 3, requires_grad=True) * 2
    window.add(features)
    assert not window._parts[0].requires_grad
