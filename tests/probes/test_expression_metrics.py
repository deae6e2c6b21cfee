import math

import numpy as np
import pytest
from support.evaluation_goldens import inputs, reference, with_nan

from timm_mvhybrid.evaluate import EvaluationError, drop_percent, drop_percentages, expression_metrics


@pytest.fixture(scope="module")
def golden():
    data = inputs("metrics_nan")
    return data["y"], data["pred"], reference()["metrics_nan"]


def test_genes_have_hests_scores_and_constant_ones_none(golden):
    y, prediction, expected = golden
    metrics = expression_metrics(y, prediction, "propagate")
    np.testing.assert_allclose(metrics.pcc_per_gene, with_nan(expected["pearson"]), rtol=1e-12)
    np.testing.assert_allclose(metrics.mse_per_gene, expected["l2_errors"], rtol=1e-12)
    np.testing.assert_allclose(metrics.r2_per_gene, with_nan(expected["r2"]), rtol=1e-12)
    assert (metrics.mse, metrics.mae) == pytest.approx(
        (expected["derived_stem"]["mse"], expected["derived_stem"]["mae"]), rel=1e-12
    )
    assert metrics.num_constant == 2


def test_policies_for_constant_genes(golden):
    y, prediction, expected = golden
    propagate, omit, zero = (
        expression_metrics(y, prediction, policy) for policy in ("propagate", "omit", "zero")
    )
    assert math.isnan(propagate.pcc)
    assert math.isnan(propagate.pcc10)
    assert omit.pcc == pytest.approx(expected["nanmean"], rel=1e-12)
    assert zero.pcc == pytest.approx(expected["nan_as_zero_mean"], rel=1e-12)
    assert omit.pcc10 == pytest.approx(omit.pcc)  # ten genes are left
    assert expression_metrics(y, prediction).pcc == omit.pcc  # the default


def test_the_ten_best_are_those_of_the_highest_correlation():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(50, 30))
    prediction = y * np.linspace(0, 2, 30) + rng.normal(size=(50, 30))
    metrics = expression_metrics(y, prediction)
    by_hand = [np.corrcoef(y[:, gene], prediction[:, gene])[0, 1] for gene in range(30)]
    np.testing.assert_allclose(metrics.pcc_per_gene, by_hand, rtol=1e-12)
    assert metrics.pcc10 == pytest.approx(np.mean(sorted(by_hand)[-10:]))


def test_what_varies_by_rounding_only_is_constant():
    y = np.random.default_rng(0).normal(size=(20, 1))
    prediction = np.full((20, 1), 0.3)
    prediction[3] = np.nextafter(0.3, 1)
    assert math.isnan(expression_metrics(y, prediction).pcc_per_gene[0])
    prediction[3] = 0.3 + 1e-9
    assert not math.isnan(expression_metrics(y, prediction).pcc_per_gene[0])


def test_scales_far_from_one_change_nothing():
    rng = np.random.default_rng(0)
    y, prediction = rng.normal(size=(2, 30, 2))
    expected = expression_metrics(y, prediction).pcc_per_gene
    for scale in (1e-100, 1e100):
        np.testing.assert_allclose(
            expression_metrics(y, prediction * scale).pcc_per_gene, expected, rtol=1e-9
        )


def test_wrong_input_is_named():
    with pytest.raises(EvaluationError, match="`nan_policy` is 'drop'"):
        expression_metrics([[1.0]], [[1.0]], "drop")
    with pytest.raises(EvaluationError, match="prediction: row 1"):
        expression_metrics([[1.0], [2.0]], [[1.0], [np.nan]])
    with pytest.raises(EvaluationError, match="must agree"):
        expression_metrics([[1.0], [2.0]], [[1.0, 2.0]])


def test_drops_are_those_of_the_paper_s_definition():
    expected = reference()["loso"]
    random, loso = expected["random10"]["mean"], expected["loso8"]["mean"]
    found = drop_percentages(random, loso)
    assert set(found) == {"pcc", "pcc10", "mse", "mae"}
    assert found == pytest.approx(expected["drop_percent"], rel=1e-12)


def test_a_drop_from_nothing_is_none():
    assert drop_percent(0.0, -0.1) is None
    assert drop_percent(-0.2, -0.1) is None
    assert drop_percent(math.nan, 0.1) is None
    assert drop_percent(0.5, math.nan) is None
    assert drop_percent(0.5, -0.25) == 150
