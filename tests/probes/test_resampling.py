import math

import numpy as np
import pytest

from timm_mvhybrid.evaluate import EvaluationError, bootstrap_interval, compare_paired
from timm_mvhybrid.probes.resampling import summarise


def assert_quantiles(found, drawn):
    """Asserts that a 95 % interval leaves 2.5 % of the draws on each side, as closely as two samples can tell.

    A fraction p of n draws has a deviation of √(p (1 - p) / n), that of two samples √2 times as much; five of these.
    Draws of few values repeat, so that the fraction up to and the fraction below a bound enclose it.
    """
    slack = 5 * (2 * 0.025 * 0.975 / len(drawn)) ** 0.5
    rounding = 1e-12
    assert np.mean(drawn < found.low - rounding) < 0.025 + slack
    assert np.mean(drawn <= found.low + rounding) > 0.025 - slack
    assert np.mean(drawn > found.high + rounding) < 0.025 + slack
    assert np.mean(drawn >= found.high - rounding) > 0.025 - slack


def test_interval_over_folds_is_that_of_drawn_folds():
    values = np.array([0.1, 0.4, 0.2, 0.9, 0.3])
    found = bootstrap_interval(values, num_resamples=20_000)
    drawn = np.random.default_rng(9).choice(values, (20_000, 5)).mean(axis=1)
    assert_quantiles(found, drawn)
    assert found.over == "folds"


def test_interval_over_folds_and_genes_is_that_of_drawn_folds_and_genes():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(6, 1)) + 2 * rng.normal(size=(1, 15)) + rng.normal(size=(6, 15))
    found = bootstrap_interval(table, num_resamples=20_000)
    drawn = [table[rng.integers(0, 6, 6)][:, rng.integers(0, 15, 15)].mean() for _ in range(20_000)]
    assert_quantiles(found, np.array(drawn))
    folds_only = bootstrap_interval(table.mean(axis=1), num_resamples=20_000)
    assert found.high - found.low > 1.2 * (folds_only.high - folds_only.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        found = bootstrap_interval(rng.normal(size=40), num_resamples=400, seed=trial)
        covered += found.low <= 0 <= found.high
    # of 40 numbers the percentile interval covers about 94 %; 200 trials tell that to 1.7 %, and it is four of these
    assert 0.87 <= covered / 200 < 1


def test_missing_genes_and_folds_are_left_out():
    table = np.array([[1.0, np.nan], [3.0, 3.0], [np.nan, np.nan], [1.0, 1.0]])
    found = bootstrap_interval(table)
    assert 1.0 <= found.low <= found.high <= 3.0
    assert bootstrap_interval([np.nan, 1.0]) is None
    assert bootstrap_interval([[1.0, 2.0]]) is None


def test_summary_states_deviation_and_its_degrees_of_freedom():
    values = [1.0, 2.0, 4.0]
    for ddof in (0, 1):
        found = summarise("pcc", values, ddof=ddof)
        assert (found.mean, found.std, found.ddof) == pytest.approx(
            (np.mean(values), np.std(values, ddof=ddof), ddof)
        )
    single = summarise("pcc", [1.0], ddof=1)
    assert math.isnan(single.std)
    assert single.interval is None
    assert math.isnan(summarise("pcc", [1.0, np.nan]).mean)


def test_sign_flips_are_counted_out():
    found = compare_paired([3.0, 2.0, 4.0, 3.0], [1.0, 1.0, 1.0, 4.0])
    # |2 + 1 + 3 - 1| = 5: sums of ±2 ±1 ±3 ±1 reach 5 or more by 7 (all) and 5 (either 1 flipped)
    assert found.p_value == pytest.approx(2 * 3 / 16)
    assert found.difference == pytest.approx(5 / 4)
    assert found.smallest_p_value == 1 / 8
    assert found.share_better == 3 / 4


def test_for_errors_lower_is_better():
    found = compare_paired([[0.5, 0.5]] * 6, [[1.0, 0.75]] * 6, metric="mse", model="a", baseline="b")
    assert found.share_better == 1
    assert found.difference == pytest.approx(-0.375)
    assert found.p_value == found.smallest_p_value == 1 / 32


def test_a_model_against_itself_is_no_different():
    values = np.random.default_rng(0).normal(size=(8, 5))
    found = compare_paired(values, values)
    assert (found.difference, found.p_value, found.share_better) == (0, 1, 0.5)


def test_many_folds_are_sampled():
    rng = np.random.default_rng(0)
    values = rng.normal(size=30)
    assert compare_paired(values + 2, values + rng.normal(size=30) * 0.1).p_value < 1e-3
    assert compare_paired(values, rng.normal(size=30)).p_value > 0.01


@pytest.mark.parametrize("values", [[3.0], [3.0, np.nan]])
def test_one_fold_alone_shows_nothing(values):
    found = compare_paired(values, [1.0] * len(values))
    assert (found.difference, found.num_folds, found.p_value) == (2.0, 1, 1.0)


def test_different_folds_cannot_be_paired():
    with pytest.raises(EvaluationError, match="same folds and genes"):
        compare_paired([1.0, 2.0], [1.0])
    with pytest.raises(EvaluationError, match="level"):
        bootstrap_interval([1.0, 2.0], level=1.0)
