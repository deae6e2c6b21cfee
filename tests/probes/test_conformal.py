from fractions import Fraction

import numpy as np
import pytest

from timm_mvhybrid.probes.conformal import conformal_width, grouped_quantiles
from timm_mvhybrid.runtime.errors import EvaluationError


def test_quantiles_are_those_of_the_mixture_counted_exactly():
    rng = np.random.default_rng(0)
    groups = np.repeat([2, 0, 5], [7, 1, 4])
    scores = rng.integers(0, 6, (12, 3)).astype(float)  # with ties
    found = grouped_quantiles(scores, groups, num_steps=40)
    for column in range(3):
        values = scores[:, column]
        for step in range(41):
            reached = [
                value
                for value in sorted(values)
                if sum(
                    Fraction(int((values[groups == g] <= value).sum()), int((groups == g).sum()))
                    for g in (0, 2, 5)
                )
                / 3
                >= Fraction(step, 40)
            ]
            assert found[step, column] == reached[0]


def test_groups_of_one_size_pool_their_rows():
    scores = np.random.default_rng(1).normal(size=(60, 2))
    found = grouped_quantiles(scores, np.arange(60) % 6)
    expected = np.quantile(scores, np.arange(1, 201) / 200, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(found[1:], expected)


def test_a_large_group_weighs_as_much_as_a_small_one():
    scores = np.concatenate([np.zeros(1000), np.full(10, 5.0)])
    found = grouped_quantiles(scores, np.repeat(["large", "small"], [1000, 10]))
    assert conformal_width(found, 0.5, 2)[0] == 0
    assert conformal_width(found, 0.505, 2)[0] == 5


def test_the_width_between_steps_is_the_next_wider_one():
    found = grouped_quantiles(np.arange(1, 101.0), np.arange(100), num_steps=100)
    assert conformal_width(found, 0.8, 100)[0] == 80
    assert conformal_width(found, 0.801, 100)[0] == 81


@pytest.mark.parametrize(("num_groups", "promised"), [(2, False), (3, False), (4, True), (8, True)])
def test_few_groups_cannot_promise_a_level(num_groups, promised):
    """With K exchangeable groups a new one exceeds all with probability 1 / (K + 1): 0.8 needs K = 4."""
    scores = np.arange(num_groups, dtype=float)
    found = grouped_quantiles(scores, np.arange(num_groups))
    width = conformal_width(found, 0.8, num_groups, "hierarchical")[0]
    assert np.isfinite(width) == promised
    if num_groups == 4:
        assert width == scores[-1]


@pytest.mark.parametrize("between", [0.0, 1.0, 10.0])
def test_hierarchical_widths_keep_their_promise_for_new_groups(between):
    """Scores of 9 groups and of a new one, exchangeable: at least 80 % of the new group's rows are covered on average."""
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(400):
        scores = np.abs(between * rng.normal(size=(10, 1)) + rng.normal(size=(10, 20)))
        found = grouped_quantiles(scores[:9].ravel(), np.repeat(np.arange(9), 20))
        covered.append(np.mean(scores[9] <= conformal_width(found, 0.8, 9, "hierarchical")[0]))
    # five standard errors of the mean
    assert np.mean(covered) >= 0.8 - 5 * np.std(covered) / 20


def test_pooled_widths_cover_what_they_aim_at_where_rows_decide():
    rng = np.random.default_rng(3)
    scores = np.abs(rng.normal(size=(8, 2000)))
    found = grouped_quantiles(scores.ravel(), np.repeat(np.arange(8), 2000))
    # the 80 % quantile of |N(0, 1)|; the density of |z| there is 0.351, and 16,000 rows give it to within 5 standard errors
    error = np.sqrt(0.8 * 0.2 / 16000) / 0.351
    assert abs(conformal_width(found, 0.8, 8)[0] - 1.2816) < 5 * error


def test_arguments_that_cannot_be():
    with pytest.raises(EvaluationError, match="scores: row 1, column 0 is nan"):
        grouped_quantiles([0.0, np.nan], [0, 1])
    with pytest.raises(EvaluationError, match="groups: must be 2 labels"):
        grouped_quantiles([0.0, 1.0], [0, 1, 2])
    found = grouped_quantiles([0.0, 1.0], [0, 1])
    for level in (0, 1, -0.1, float("nan")):
        with pytest.raises(EvaluationError, match="`level` must lie between 0 and 1"):
            conformal_width(found, level, 2)
    with pytest.raises(EvaluationError, match="`calibration` is 'exact'"):
        conformal_width(found, 0.8, 2, "exact")
